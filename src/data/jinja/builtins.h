#pragma once

#include <string>
#include <utility>
#include <vector>

#include "data/jinja/value.h"

namespace cmoe::jinja {

/// Arguments of a call: by position, then by name.
struct Arguments {
  std::vector<Value> values;
  std::vector<std::pair<std::string, Value>> named;

  /// Argument `index` or `name`, or null.
  const Value* find(size_t index, const std::string& name) const;
};

// Each throws Error, with `line`, naming what is unknown or does not fit.

/// value | name(arguments)
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments, int line);
/// value is name(arguments)
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, int line);
/// value.name(arguments)
Value call_method(const std::string& name, const Value& value, const Arguments& arguments, int line);
/// name(arguments): range, namespace, dict, raise_exception
Value call_function(const std::string& name, const Arguments& arguments, int line);

/// What a for loop runs over: a list, the keys of a dict, the characters of a string; nothing for undefined.
List items_of(const Value& value, int line);

}  // namespace cmoe::jinja
