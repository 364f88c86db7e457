#include <algorithm>

#include "base/error.h"
#include "data/jinja/expression_parser.h"
#include "data/jinja/syntax.h"

namespace cmoe::jinja {
namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Block run() { return parse_block({}); }

 private:
  void end_block_tag() {
    CMOE_CHECK(now().kind == Kind::block_end, "chat template: line {}: expected the end of the tag; found {}", now().line,
               found());
    skip();
  }

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
      skip();
      if (token.kind == Kind::data) {
        statement.text = token.text;
      } else if (token.kind == Kind::output_begin) {
        statement.kind = Statement::Kind::output;
        statement.expression = parse_expression();
        CMOE_CHECK(now().kind == Kind::output_end, "chat template: line {}: expected }}}}; found {}", now().line, found());
        skip();
      } else {
        if (std::find(ends.begin(), ends.end(), now().text) != ends.end()) return block;
        if (accept_name("generation")) {  // marks what an assistant says; changes no text
          end_block_tag();
          for (Statement& inner : parse_block({"endgeneration"})) block.push_back(std::move(inner));
          skip();
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
      skip();
      const Nesting nesting(*this);
      parse_branch(inner);  // takes the endif of all
      statement.otherwise.push_back(std::move(inner));
      return;
    }
    if (accept_name("else")) {
      end_block_tag();
      statement.otherwise = parse_block({"endif"});
    }
    skip();
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
    skip();
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
    skip();
    end_block_tag();
  }

  int loops_ = 0;  // around the statement at hand
};

}  // namespace

Block parse(std::string_view source) { return Parser(source).run(); }

}  // namespace cmoe::jinja
