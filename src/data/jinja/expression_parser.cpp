#include "data/jinja/expression_parser.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"

namespace cmoe::jinja {
namespace {

using Node = Expression::Kind;

constexpr int kMaxDepth = 200;
constexpr int kMaxChain = 1000;

}  // namespace

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : owner(parser) {
  CMOE_CHECK(++owner.depth_ <= kMaxDepth, "chat template: line {}: nested more than {} deep", owner.now().line, kMaxDepth);
}

const Token& ExpressionParser::ahead() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }

bool ExpressionParser::accept(Kind kind, std::string_view text) {
  if (!at(kind, text)) return false;
  ++position_;
  return true;
}

std::string ExpressionParser::found() const {
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

void ExpressionParser::expect_symbol(std::string_view text) {
  CMOE_CHECK(accept_symbol(text), "chat template: line {}: expected '{}'; found {}", now().line, text, found());
}

void ExpressionParser::expect_name(std::string_view text) {
  CMOE_CHECK(accept_name(text), "chat template: line {}: expected '{}'; found {}", now().line, text, found());
}

std::string ExpressionParser::take_name() {
  CMOE_CHECK(now().kind == Kind::name, "chat template: line {}: expected a name; found {}", now().line, found());
  return tokens_[position_++].text;
}

// From the loosest binding to the tightest.

ExpressionPtr ExpressionParser::make(Node kind, std::string text) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->text = std::move(text);
  node->line = now().line;
  return node;
}
/// A chain such as a + a + ... nests without recursion here, but evaluating it recurses.
void ExpressionParser::adopt(Expression& node, ExpressionPtr child) const {
  if (child) node.depth = std::max(node.depth, child->depth + 1);
  CMOE_CHECK(node.depth <= kMaxChain, "chat template: line {}: an expression of more than {} links", now().line, kMaxChain);
  node.args.push_back(std::move(child));
}
ExpressionPtr ExpressionParser::make_binary(std::string text, ExpressionPtr left, ExpressionPtr right) const {
  auto node = make(Node::binary, std::move(text));
  adopt(*node, std::move(left));
  adopt(*node, std::move(right));
  return node;
}

ExpressionPtr ExpressionParser::parse_expression() {
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

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (accept_name("or")) left = make_binary("or", std::move(left), parse_and());
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (accept_name("and")) left = make_binary("and", std::move(left), parse_not());
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  const Nesting nesting(*this);
  if (at_name("not") && !(ahead().kind == Kind::name && ahead().text == "in")) {
    ++position_;
    auto node = make(Node::negate);
    adopt(*node, parse_not());
    return node;
  }
  return parse_comparison();
}

ExpressionPtr ExpressionParser::parse_comparison() {
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

ExpressionPtr ExpressionParser::parse_operators(std::initializer_list<std::string_view> symbols,
                                                ExpressionPtr (ExpressionParser::*tighter)()) {
  ExpressionPtr left = (this->*tighter)();
  for (;;) {
    const auto symbol = std::find_if(symbols.begin(), symbols.end(), [&](std::string_view s) { return at_symbol(s); });
    if (symbol == symbols.end()) return left;
    ++position_;
    left = make_binary(std::string(*symbol), std::move(left), (this->*tighter)());
  }
}
ExpressionPtr ExpressionParser::parse_sum() { return parse_operators({"+", "-"}, &ExpressionParser::parse_concatenation); }
ExpressionPtr ExpressionParser::parse_concatenation() { return parse_operators({"~"}, &ExpressionParser::parse_product); }
ExpressionPtr ExpressionParser::parse_product() {
  return parse_operators({"*", "/", "//", "%"}, &ExpressionParser::parse_filtered);
}

/// An operand with its filters and tests, which bind tighter than any operator.
ExpressionPtr ExpressionParser::parse_filtered() {
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
bool ExpressionParser::begins_operand() const {
  if (now().kind == Kind::string || now().kind == Kind::integer || now().kind == Kind::real) return true;
  if (now().kind == Kind::symbol) return now().text == "[" || now().text == "{";
  constexpr std::string_view words[] = {"else", "or", "and", "is", "if", "in", "not"};
  return now().kind == Kind::name && std::find(std::begin(words), std::end(words), now().text) == std::end(words);
}

ExpressionPtr ExpressionParser::parse_signed() {
  const Nesting nesting(*this);
  if (accept_symbol("-")) {
    auto node = make(Node::minus);
    adopt(*node, parse_signed());
    return node;
  }
  if (accept_symbol("+")) return parse_signed();
  return parse_postfix();
}

ExpressionPtr ExpressionParser::parse_postfix() {
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

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr value) {
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
void ExpressionParser::parse_arguments(Expression& node) {
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

ExpressionPtr ExpressionParser::parse_primary() {
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

}  // namespace cmoe::jinja
