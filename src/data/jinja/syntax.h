#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/jinja/value.h"

namespace cmoe::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    constant,   // value
    name,       // text
    list,       // args
    dict,       // args: key, value, key, value, ...
    member,     // args[0] . text
    index,      // args[0] [ args[1] ]
    slice,      // args[0] [ args[1] : args[2] : args[3] ], a missing bound is null
    call,       // text(args[0...]) of a function, with named
    method,     // args[0] . text(args[1...]), with named
    filter,     // args[0] | text(args[1...]), with named
    test,       // args[0] is text(args[1...])
    negate,     // not args[0]
    minus,      // - args[0]
    binary,     // args[0] text args[1]: and or == != < <= > >= in + - * / // % ~
    condition,  // args[0] if args[1] else args[2] (null: undefined)
  };
  Kind kind = Kind::constant;
  std::string text;
  Value value;
  std::vector<ExpressionPtr> args;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  int line = 1;
  int depth = 1;  // nodes on the longest way down
};

struct Statement;
using Block = std::vector<Statement>;

struct Statement {
  enum class Kind {
    data,       // text
    output,     // expression
    branch,     // if expression: body else: otherwise
    loop,       // for names in expression if condition: body else: otherwise
    set,        // names[0] = expression, or names[0].names[1] = expression
    set_block,  // names[0] = output of body
    stop,       // break
    next,       // continue
  };
  Kind kind = Kind::data;
  std::string text;
  std::vector<std::string> names;
  ExpressionPtr expression;
  ExpressionPtr condition;
  Block body;
  Block otherwise;
  int line = 1;
};

/// Parses a template. Throws Error with the line, naming the construct that is wrong or not supported.
Block parse(std::string_view source);

}  // namespace cmoe::jinja
