#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/jinja/lexer.h"
#include "data/jinja/syntax.h"

namespace cmoe::jinja {

/// Reads expressions off a template's tokens; the parser of statements builds on it.
class ExpressionParser {
 public:
  explicit ExpressionParser(std::string_view source) : tokens_(tokenize(source)) {}

 protected:
  using Kind = Token::Kind;

  /// Counts how deep the caller is nested, and throws beyond a bound: a template comes from a file, and must not be able to
  /// exhaust the stack.
  struct Nesting {
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --owner.depth_; }
    ExpressionParser& owner;
  };

  // The token at hand, and what is done with it.
  const Token& now() const { return tokens_[position_]; }
  const Token& ahead() const;
  bool at(Kind kind, std::string_view text) const { return now().kind == kind && now().text == text; }
  bool at_symbol(std::string_view text) const { return at(Kind::symbol, text); }
  bool at_name(std::string_view text) const { return at(Kind::name, text); }
  bool accept(Kind kind, std::string_view text);
  bool accept_symbol(std::string_view text) { return accept(Kind::symbol, text); }
  bool accept_name(std::string_view text) { return accept(Kind::name, text); }
  void expect_symbol(std::string_view text);
  void expect_name(std::string_view text);
  std::string take_name();
  void skip() { ++position_; }
  /// The token at hand, for messages.
  std::string found() const;

  ExpressionPtr parse_expression();
  /// An expression without `if`: what a for loop runs over, whose condition belongs to the loop.
  ExpressionPtr parse_or();

 private:
  ExpressionPtr make(Expression::Kind kind, std::string text = {}) const;
  ExpressionPtr make_binary(std::string text, ExpressionPtr left, ExpressionPtr right) const;
  void adopt(Expression& node, ExpressionPtr child) const;
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_comparison();
  ExpressionPtr parse_operators(std::initializer_list<std::string_view> symbols, ExpressionPtr (ExpressionParser::*tighter)());
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concatenation();
  ExpressionPtr parse_product();
  ExpressionPtr parse_filtered();
  bool begins_operand() const;
  ExpressionPtr parse_signed();
  ExpressionPtr parse_postfix();
  ExpressionPtr parse_subscript(ExpressionPtr value);
  void parse_arguments(Expression& node);
  ExpressionPtr parse_primary();

  std::vector<Token> tokens_;
  size_t position_ = 0;
  int depth_ = 0;
};

}  // namespace cmoe::jinja
