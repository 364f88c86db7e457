#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "data/jinja/lexer.h"
#include "data/jinja/syntax.h"

namespace cmoe::jinja {
namespace {

using Kind = Token::Kind;
using Node = Expression::Kind;

/// A template comes from a file: nesting is bounded, so that none can exhaust the stack.
constexpr int kMaxDepth = 200;
constexpr int kMaxChain = 1000;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Block run() {
    Block block = parse_block({});
    return block;
  }

 private:
  struct Nesting {
    explicit Nesting(Parser& parser) : owner(parser) {
      CMOE_CHECK(++owner.depth_ <= kMaxDepth, "chat template: line {}: nested more than {} deep", owner.now().line, kMaxDepth);
    }
    ~Nesting() { --owner.depth_; }
    Parser& owner;
  };

  const Token& now() const { return tokens_[position_]; }
  const Token& ahead() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  bool at(Kind kind, std::string_view text) const { return now().kind == kind && now().text == text; }
  bool at_symbol(std::string_view text) const { return at(Kind::symbol, text); }
  bool at_name(std::string_view text) const { return at(Kind::name, text); }
  bool accept(Kind kind, std::string_view text) {
    if (!at(kind, text)) return false;
    ++position_;
    return true;
  }
  bool accept_symbol(std::string_view text) { return accept(Kind::symbol, text); }
  bool accept_name(std::string_view text) { return accept(Kind::name, text); }

  std::string found() const {
    switch (now().kind) {
      case Kind::block_end:
        return "%}";
      case Kind::output_end:
        return "}}";
      case Kind::end:
        return "the end";
      default:
        return "'" + now().text + "'";
    }
  }
  void expect_symbol(std::string_view text) {
    CMOE_CHECK(accept_symbol(text), "chat template: line {}: expected '{}'; found {}", now().line, text, found());
  }
  void expect_name(std::string_view text) {
    CMOE_CHECK(accept_name(text), "chat template: line {}: expected '{}'; found {}", now().line, text, found());
  }
  std::string take_name() {
    CMOE_CHECK(now().kind == Kind::name, "chat template: line {}: expected a name; found {}", now().line, found());
    return tokens_[position_++].text;
  }
  void end_block_tag() {
    CMOE_CHECK(now().kind == Kind::block_end, "chat template: line {}: expected the end of the tag; found {}", now().line,
               found());
    ++position_;
  }

  // --- statements ---

  /// Statements up to a tag that begins with one of `ends`, which is left at its name.
  Block parse_block(const std::vector<std::string_view>& ends) {
    const Nesting nesting(*this);
    Block block;
    for (;;) {
      const Token& token = now();
      if (token.kind == Kind::end) {
        CMOE_CHECK(ends.empty(), "chat template: line {}: '{}' is missing", token.line, ends.back());
        return block;
      }
      Statement statement;
      statement.line = token.line;
      ++position_;
      if (token.kind == Kind::data) {
        statement.text = token.text;
      } else if (token.kind == Kind::output_begin) {
        statement.kind = Statement::Kind::output;
        statement.expression = parse_expression();
        CMOE_CHECK(now().kind == Kind::output_end, "chat template: line {}: expected }}}}; found {}", now().line, found());
        ++position_;
      } else {
        if (std::find(ends.begin(), ends.end(), now().text) != ends.end()) return block;
        if (accept_name("generation")) {  // marks what an assistant says; changes no text
          end_block_tag();
          for (Statement& inner : parse_block({"endgeneration"})) block.push_back(std::move(inner));
          ++position_;
          end_block_tag();
          continue;
        }
        parse_tag(statement);
      }
      block.push_back(std::move(statement));
    }
  }

  void parse_tag(Statement& statement) {
    const std::string tag = take_name();
    if (tag == "if") {
      parse_branch(statement);
    } else if (tag == "for") {
      parse_loop(statement);
    } else if (tag == "set") {
      parse_set(statement);
    } else if (tag == "break" || tag == "continue") {
      CMOE_CHECK(loops_ > 0, "chat template: line {}: '{}' outside a loop", statement.line, tag);
      statement.kind = tag == "break" ? Statement::Kind::stop : Statement::Kind::next;
      end_block_tag();
    } else {
      fail("chat template: line {}: statement '{}' is not supported; expected if, for, set, break, continue or generation",
           statement.line, tag);
    }
  }

  void parse_branch(Statement& statement) {
    statement.kind = Statement::Kind::branch;
    statement.expression = parse_expression();
    end_block_tag();
    statement.body = parse_block({"elif", "else", "endif"});
    if (at_name("elif")) {
      Statement inner;
      inner.line = now().line;
      ++position_;
      const Nesting nesting(*this);
      parse_branch(inner);  // takes the endif of all
      statement.otherwise.push_back(std::move(inner));
      return;
    }
    if (accept_name("else")) {
      end_block_tag();
      statement.otherwise = parse_block({"endif"});
    }
    ++position_;
    end_block_tag();
  }

  void parse_loop(Statement& statement) {
    statement.kind = Statement::Kind::loop;
    do statement.names.push_back(take_name());
    while (accept_symbol(","));
    expect_name("in");
    statement.expression = parse_or();  // a condition belongs to the loop
    if (accept_name("if")) statement.condition = parse_expression();
    CMOE_CHECK(!at_name("recursive"), "chat template: line {}: 'recursive' loops are not supported", now().line);
    end_block_tag();
    ++loops_;
    statement.body = parse_block({"else", "endfor"});
    --loops_;
    if (accept_name("else")) {
      end_block_tag();
      statement.otherwise = parse_block({"endfor"});
    }
    ++position_;
    end_block_tag();
  }

  void parse_set(Statement& statement) {
    statement.names.push_back(take_name());
    if (accept_symbol(".")) statement.names.push_back(take_name());
    if (accept_symbol("=")) {
      statement.kind = Statement::Kind::set;
      statement.expression = parse_expression();
      end_block_tag();
      return;
    }
    CMOE_CHECK(now().kind == Kind::block_end && statement.names.size() == 1, "chat template: line {}: expected '='; found {}",
               now().line, found());
    statement.kind = Statement::Kind::set_block;
    end_block_tag();
    statement.body = parse_block({"endset"});
    ++position_;
    end_block_tag();
  }

  // --- expressions, loosest first ---

  ExpressionPtr make(Node kind, std::string text = {}) const {
    auto node = std::make_unique<Expression>();
    node->kind = kind;
    node->text = std::move(text);
    node->line = now().line;
    return node;
  }
  /// A chain such as a + a + ... nests without recursion here, but evaluating it recurses.
  void adopt(Expression& node, ExpressionPtr child) const {
    if (child) node.depth = std::max(node.depth, child->depth + 1);
    CMOE_CHECK(node.depth <= kMaxChain, "chat template: line {}: an expression of more than {} links", now().line, kMaxChain);
    node.args.push_back(std::move(child));
  }
  ExpressionPtr make_binary(std::string text, ExpressionPtr left, ExpressionPtr right) const {
    auto node = make(Node::binary, std::move(text));
    adopt(*node, std::move(left));
    adopt(*node, std::move(right));
    return node;
  }

  ExpressionPtr parse_expression() {
    const Nesting nesting(*this);
    ExpressionPtr value = parse_or();
    while (accept_name("if")) {
      auto node = make(Node::condition);
      adopt(*node, std::move(value));
      adopt(*node, parse_or());
      adopt(*node, accept_name("else") ? parse_expression() : nullptr);
      value = std::move(node);
    }
    return value;
  }

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (accept_name("or")) left = make_binary("or", std::move(left), parse_and());
    return left;
  }

  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (accept_name("and")) left = make_binary("and", std::move(left), parse_not());
    return left;
  }

  ExpressionPtr parse_not() {
    const Nesting nesting(*this);
    if (at_name("not") && !(ahead().kind == Kind::name && ahead().text == "in")) {
      ++position_;
      auto node = make(Node::negate);
      adopt(*node, parse_not());
      return node;
    }
    return parse_comparison();
  }

  ExpressionPtr parse_comparison() {
    ExpressionPtr left = parse_sum();
    bool compared = false;
    for (;;) {
      std::string op;
      bool negated = false;
      for (std::string_view symbol : {"==", "!=", "<", "<=", ">", ">="}) {
        if (at_symbol(symbol)) op = symbol;
      }
      if (at_name("in")) op = "in";
      if (at_name("not") && ahead().kind == Kind::name && ahead().text == "in") {
        ++position_;
        op = "in";
        negated = true;
      }
      if (op.empty()) return left;
      CMOE_CHECK(!compared, "chat template: line {}: chained comparison '{}' is not supported; expected 'and' between two",
                 now().line, op);
      compared = true;
      ++position_;
      left = make_binary(op, std::move(left), parse_sum());
      if (negated) {
        auto node = make(Node::negate);
        adopt(*node, std::move(left));
        left = std::move(node);
      }
    }
  }

  ExpressionPtr parse_operators(std::initializer_list<std::string_view> symbols, ExpressionPtr (Parser::*tighter)()) {
    ExpressionPtr left = (this->*tighter)();
    for (;;) {
      const auto symbol = std::find_if(symbols.begin(), symbols.end(), [&](std::string_view s) { return at_symbol(s); });
      if (symbol == symbols.end()) return left;
      ++position_;
      left = make_binary(std::string(*symbol), std::move(left), (this->*tighter)());
    }
  }
  ExpressionPtr parse_sum() { return parse_operators({"+", "-"}, &Parser::parse_concatenation); }
  ExpressionPtr parse_concatenation() { return parse_operators({"~"}, &Parser::parse_product); }
  ExpressionPtr parse_product() { return parse_operators({"*", "/", "//", "%"}, &Parser::parse_filtered); }

  /// An operand with its filters and tests, which bind tighter than any operator.
  ExpressionPtr parse_filtered() {
    const Nesting nesting(*this);
    ExpressionPtr value = parse_signed();
    for (;;) {
      if (accept_symbol("|")) {
        auto node = make(Node::filter, take_name());
        adopt(*node, std::move(value));
        if (accept_symbol("(")) parse_arguments(*node);
        value = std::move(node);
      } else if (accept_name("is")) {
        const bool negated = accept_name("not");
        auto node = make(Node::test, take_name());
        adopt(*node, std::move(value));
        if (accept_symbol("(")) {
          parse_arguments(*node);
        } else if (begins_operand()) {
          adopt(*node, parse_postfix());
        }
        value = std::move(node);
        if (negated) {
          auto outer = make(Node::negate);
          adopt(*outer, std::move(value));
          value = std::move(outer);
        }
      } else {
        return value;
      }
    }
  }

  /// A test may have one argument without parentheses: `is divisibleby 3`.
  bool begins_operand() const {
    if (now().kind == Kind::string || now().kind == Kind::integer || now().kind == Kind::real) return true;
    if (now().kind == Kind::symbol) return now().text == "[" || now().text == "{";
    constexpr std::string_view words[] = {"else", "or", "and", "is", "if", "in", "not"};
    return now().kind == Kind::name && std::find(std::begin(words), std::end(words), now().text) == std::end(words);
  }

  ExpressionPtr parse_signed() {
    const Nesting nesting(*this);
    if (accept_symbol("-")) {
      auto node = make(Node::minus);
      adopt(*node, parse_signed());
      return node;
    }
    if (accept_symbol("+")) return parse_signed();
    return parse_postfix();
  }

  ExpressionPtr parse_postfix() {
    ExpressionPtr value = parse_primary();
    for (;;) {
      CMOE_CHECK(!at_symbol("**"), "chat template: line {}: operator '**' is not supported", now().line);
      if (accept_symbol(".")) {
        std::string name = take_name();
        const bool called = accept_symbol("(");
        auto node = make(called ? Node::method : Node::member, std::move(name));
        adopt(*node, std::move(value));
        if (called) parse_arguments(*node);
        value = std::move(node);
      } else if (accept_symbol("[")) {
        value = parse_subscript(std::move(value));
      } else if (at_symbol("(")) {
        CMOE_CHECK(value->kind == Node::name,
                   "chat template: line {}: a call of this is not supported; expected a function or method", now().line);
        ++position_;
        value->kind = Node::call;
        parse_arguments(*value);
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_subscript(ExpressionPtr value) {
    ExpressionPtr bounds[3];
    size_t count = 0;
    if (!at_symbol(":")) bounds[0] = parse_expression();
    while (count < 2 && accept_symbol(":")) {
      ++count;
      if (!at_symbol(":") && !at_symbol("]")) bounds[count] = parse_expression();
    }
    expect_symbol("]");
    auto node = make(count == 0 ? Node::index : Node::slice);
    adopt(*node, std::move(value));
    if (count == 0) {
      adopt(*node, std::move(bounds[0]));
    } else {
      for (auto& bound : bounds) adopt(*node, std::move(bound));
    }
    return node;
  }

  /// Arguments up to the closing parenthesis.
  void parse_arguments(Expression& node) {
    while (!accept_symbol(")")) {
      if (now().kind == Kind::name && ahead().kind == Kind::symbol && ahead().text == "=") {
        std::string name = take_name();
        ++position_;
        node.named.emplace_back(std::move(name), parse_expression());
      } else {
        adopt(node, parse_expression());
      }
      if (!at_symbol(")")) expect_symbol(",");
    }
  }

  ExpressionPtr parse_primary() {
    const Token& token = now();
    auto node = make(Node::constant);
    ++position_;
    switch (token.kind) {
      case Kind::string:
        node->value = token.text;
        while (now().kind == Kind::string) node->value = *node->value.string() + tokens_[position_++].text;
        return node;
      case Kind::integer: {
        int64_t number = 0;
        std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
        node->value = number;
        return node;
      }
      case Kind::real:
        node->value = std::stod(token.text);
        return node;
      case Kind::name:
        if (token.text == "true" || token.text == "True") {
          node->value = true;
        } else if (token.text == "false" || token.text == "False") {
          node->value = false;
        } else if (token.text == "none" || token.text == "None") {
          node->value = None{};
        } else {
          node->kind = Node::name;
          node->text = token.text;
        }
        return node;
      case Kind::symbol:
        if (token.text == "(") {
          node = parse_expression();
          CMOE_CHECK(!at_symbol(","), "chat template: line {}: tuples are not supported; expected a list", now().line);
          expect_symbol(")");
          return node;
        }
        if (token.text == "[") {
          node->kind = Node::list;
          while (!accept_symbol("]")) {
            adopt(*node, parse_expression());
            if (!at_symbol("]")) expect_symbol(",");
          }
          return node;
        }
        if (token.text == "{") {
          node->kind = Node::dict;
          while (!accept_symbol("}")) {
            adopt(*node, parse_expression());
            expect_symbol(":");
            adopt(*node, parse_expression());
            if (!at_symbol("}")) expect_symbol(",");
          }
          return node;
        }
        [[fallthrough]];
      default:
        --position_;
        fail("chat template: line {}: expected a value; found {}", now().line, found());
    }
  }

  std::vector<Token> tokens_;
  size_t position_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Block parse(std::string_view source) { return Parser(source).run(); }

}  // namespace cmoe::jinja
