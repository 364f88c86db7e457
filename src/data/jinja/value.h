#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace cmoe::jinja {

struct Value;
using List = std::vector<Value>;
/// In order of insertion, as Python's dict; small, so that looking through it is cheap.
using Dict = std::vector<std::pair<std::string, Value>>;

struct Undefined {
  std::string name;  // of what was looked up, for messages
};
struct None {};

/// What an expression of a template gives. Lists and dicts are shared, as in Python.
struct Value {
  std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<List>, std::shared_ptr<Dict>> data;
  int depth = 0;  // of lists and dicts in one another

  Value() = default;
  Value(Undefined value) : data(std::move(value)) {}
  Value(None value) : data(value) {}
  Value(bool value) : data(value) {}
  Value(int64_t value) : data(value) {}
  Value(double value) : data(value) {}
  Value(std::string value) : data(std::move(value)) {}
  Value(const char* value) : data(std::string(value)) {}
  /// @throws Error beyond a depth of 100: a template may nest values round by round, and walking through them recurses.
  Value(List list);
  Value(Dict dict);

  template <class T>
  const T* as() const {
    return std::get_if<T>(&data);
  }
  bool is_undefined() const { return as<Undefined>() != nullptr; }
  bool is_none() const { return as<None>() != nullptr; }
  const std::string* string() const { return as<std::string>(); }
  List* list() const {
    const auto* shared = as<std::shared_ptr<List>>();
    return shared ? shared->get() : nullptr;
  }
  Dict* dict() const {
    const auto* shared = as<std::shared_ptr<Dict>>();
    return shared ? shared->get() : nullptr;
  }
  /// An int, or a bool as 0 or 1.
  const int64_t* integer(int64_t& storage) const;
};

/// "string", "int", "undefined 'x'": for messages.
std::string type_name(const Value& value);

/// Python's truth: undefined, None, False, 0, "" and what is empty are false.
bool truth(const Value& value);
bool equal(const Value& a, const Value& b);
/// Python's str(): None is "None", undefined is "".
std::string to_text(const Value& value);
/// Python's json.dumps(value, ensure_ascii=False), with `indent` spaces a level where indent >= 0.
std::string to_json(const Value& value, int64_t indent = -1);

/// The member of a dict, or null.
Value* find_member(Dict& dict, const std::string& name);

}  // namespace cmoe::jinja
