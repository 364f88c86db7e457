#include "data/jinja/builtins.h"

#include <algorithm>

#include "base/error.h"
#include "data/normalizer.h"
#include "data/utf8.h"

namespace cmoe::jinja {
namespace {

constexpr int64_t kMaxRange = 1'000'000;

const std::string& need_string(const Value& value, const std::string& what, int line) {
  CMOE_CHECK(value.string(), "chat template: line {}: {} of {}; expected a string", line, what, type_name(value));
  return *value.string();
}

int64_t need_integer(const Value& value, const std::string& what, int line) {
  int64_t storage = 0;
  const int64_t* number = value.integer(storage);
  CMOE_CHECK(number, "chat template: line {}: {} of {}; expected an int", line, what, type_name(value));
  return *number;
}

const Value& need(const Arguments& arguments, size_t index, const std::string& what, int line) {
  CMOE_CHECK(index < arguments.values.size(), "chat template: line {}: {} needs {} arguments; found {}", line, what, index + 1,
             arguments.values.size());
  return arguments.values[index];
}

/// The first letter of the text, or of every word, in upper case and the others in lower case.
std::string capitalized(const std::string& text, bool every_word) {
  std::string result;
  bool start = true;
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    const char32_t c = next_code_point(text, position);
    result += change_case(std::string_view(text).substr(begin, position - begin), start);
    start = every_word && !(is_word_character(c) && c != '_' && !is_numeric(c));
  }
  return result;
}

/// Python's strip: white space, or any of the characters of `set`.
std::string stripped(std::string_view text, const Value* set, bool left, bool right, int line) {
  const bool spaces = set == nullptr || set->is_none();
  const std::string characters = spaces ? std::string() : need_string(*set, "characters to strip", line);
  const auto drops = [&](size_t begin, size_t end) {
    if (!spaces) return characters.find(text.substr(begin, end - begin)) != std::string::npos;
    const char32_t c = next_code_point(text, begin);
    return is_white_space(c) || (c >= 0x1c && c <= 0x1f);
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    size_t next = begin;
    next_code_point(text, next);
    if (!drops(begin, next)) break;
    begin = next;
  }
  while (right && begin < end) {
    size_t start = end - 1;
    while ((static_cast<unsigned char>(text[start]) & 0xc0) == 0x80) --start;
    if (!drops(start, end)) break;
    end = start;
  }
  return std::string(text.substr(begin, end - begin));
}

List split(const std::string& text, const Arguments& arguments, int line) {
  const Value* separator = arguments.find(0, "sep");
  const Value* limit = arguments.find(1, "maxsplit");
  int64_t left = limit ? need_integer(*limit, "maxsplit", line) : -1;
  List parts;
  if (separator == nullptr || separator->is_none()) {  // runs of white space, none at the ends
    std::string rest = stripped(text, nullptr, true, false, line);
    while (!rest.empty()) {
      const size_t end = left == 0 ? std::string::npos : rest.find_first_of(" \t\n\r\f\v");
      parts.emplace_back(rest.substr(0, end));
      if (end == std::string::npos) break;
      rest = stripped(rest.substr(end), nullptr, true, false, line);
      --left;
    }
    return parts;
  }
  const std::string& mark = need_string(*separator, "separator", line);
  CMOE_CHECK(!mark.empty(), "chat template: line {}: split by an empty string", line);
  size_t begin = 0;
  for (size_t end; left != 0 && (end = text.find(mark, begin)) != std::string::npos; begin = end + mark.size(), --left) {
    parts.emplace_back(text.substr(begin, end - begin));
  }
  parts.emplace_back(text.substr(begin));
  return parts;
}

int64_t length_of(const Value& value, int line) {
  if (const auto* text = value.string()) {
    return std::count_if(text->begin(), text->end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
  }
  if (value.list()) return static_cast<int64_t>(value.list()->size());
  if (value.dict()) return static_cast<int64_t>(value.dict()->size());
  CMOE_CHECK(value.is_undefined(), "chat template: line {}: length of {}; expected a string, list or dict", line,
             type_name(value));
  return 0;
}

/// selectattr and rejectattr: members by truth or by a test.
List select(const Value& value, const Arguments& arguments, bool wanted, int line) {
  const std::string& attribute = need_string(need(arguments, 0, "selectattr", line), "attribute", line);
  List chosen;
  for (const Value& item : items_of(value, line)) {
    const Value* found = item.dict() ? find_member(*item.dict(), attribute) : nullptr;
    const Value member = found ? *found : Value(Undefined{attribute});
    bool holds = truth(member);
    if (arguments.values.size() > 1) {
      Arguments rest;
      rest.values.assign(arguments.values.begin() + 2, arguments.values.end());
      holds = apply_test(need_string(arguments.values[1], "test", line), member, rest, line);
    }
    if (holds == wanted) chosen.push_back(item);
  }
  return chosen;
}

Value items_of_dict(const Value& value, const std::string& what, int line) {
  if (value.is_undefined()) return List{};
  CMOE_CHECK(value.dict(), "chat template: line {}: {} of {}; expected a dict", line, what, type_name(value));
  List list;
  for (const auto& [key, member] : *value.dict()) list.push_back(List{key, member});
  return list;
}

}  // namespace

const Value* Arguments::find(size_t index, const std::string& name) const {
  if (index < values.size()) return &values[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

List items_of(const Value& value, int line) {
  if (value.list()) return *value.list();
  if (value.is_undefined()) return {};
  List list;
  if (value.dict()) {
    for (const auto& [key, member] : *value.dict()) list.emplace_back(key);
    return list;
  }
  const std::string& text = need_string(value, "loop", line);
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    next_code_point(text, position);
    list.emplace_back(text.substr(begin, position - begin));
  }
  return list;
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments, int line) {
  if (name == "trim") return stripped(to_text(value), arguments.find(0, "chars"), true, true, line);
  if (name == "length" || name == "count") return length_of(value, line);
  if (name == "tojson") {
    const Value* indent = arguments.find(0, "indent");
    return to_json(value, indent && !indent->is_none() ? need_integer(*indent, "indent", line) : -1);
  }
  if (name == "upper" || name == "lower") return change_case(to_text(value), name == "upper");
  if (name == "capitalize") return capitalized(to_text(value), false);
  if (name == "title") return capitalized(to_text(value), true);
  if (name == "string") return to_text(value);
  if (name == "safe") return value;
  if (name == "list") return items_of(value, line);
  if (name == "items") return items_of_dict(value, "items", line);
  if (name == "int") {
    int64_t storage = 0;
    if (const int64_t* number = value.integer(storage)) return *number;
    if (const auto* number = value.as<double>()) return static_cast<int64_t>(*number);
    try {
      return static_cast<int64_t>(std::stoll(to_text(value)));
    } catch (const std::exception&) {
      return int64_t{0};
    }
  }
  if (name == "first" || name == "last") {
    const List list = items_of(value, line);
    if (list.empty()) return Undefined{name};
    return name == "first" ? list.front() : list.back();
  }
  if (name == "reverse") {
    List list = items_of(value, line);
    std::reverse(list.begin(), list.end());
    if (!value.string()) return list;
    std::string text;
    for (const Value& character : list) text += *character.string();
    return text;
  }
  if (name == "join") {
    const Value* separator = arguments.find(0, "d");
    std::string text;
    bool first = true;
    for (const Value& item : items_of(value, line)) {
      if (!first && separator) text += to_text(*separator);
      text += to_text(item);
      first = false;
    }
    return text;
  }
  if (name == "replace") {
    const std::string& from = need_string(need(arguments, 0, "replace", line), "replace", line);
    CMOE_CHECK(!from.empty(), "chat template: line {}: replace of an empty string", line);
    return replace_all(to_text(value), from, to_text(need(arguments, 1, "replace", line)));
  }
  if (name == "default" || name == "d") {
    const Value* also_false = arguments.find(1, "boolean");
    const bool missing = value.is_undefined() || (also_false && truth(*also_false) && !truth(value));
    const Value* fallback = arguments.find(0, "default_value");
    return !missing ? value : fallback ? *fallback : Value("");
  }
  if (name == "selectattr" || name == "rejectattr") return select(value, arguments, name == "selectattr", line);
  if (name == "map") {
    const Value* attribute = arguments.find(1, "attribute");
    CMOE_CHECK(attribute && arguments.values.empty(), "chat template: line {}: filter 'map' is supported with attribute= only",
               line);
    List list;
    for (const Value& item : items_of(value, line)) {
      const Value* member = item.dict() ? find_member(*item.dict(), to_text(*attribute)) : nullptr;
      list.push_back(member ? *member : Value(Undefined{to_text(*attribute)}));
    }
    return list;
  }
  fail("chat template: line {}: filter '{}' is not supported", line, name);
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, int line) {
  int64_t storage = 0;
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is_none();
  if (name == "string") return value.string() != nullptr;
  if (name == "mapping") return value.dict() != nullptr;
  if (name == "iterable" || name == "sequence") return value.string() || value.list() || value.dict() || value.is_undefined();
  if (name == "boolean") return value.as<bool>() != nullptr;
  if (name == "integer") return value.as<int64_t>() != nullptr;
  if (name == "float") return value.as<double>() != nullptr;
  if (name == "number") return value.integer(storage) != nullptr || value.as<double>() != nullptr;
  if (name == "true" || name == "false") return value.as<bool>() && *value.as<bool>() == (name == "true");
  if (name == "odd" || name == "even") return (need_integer(value, name, line) % 2 == 0) == (name == "even");
  if (name == "divisibleby") {
    const int64_t divisor = need_integer(need(arguments, 0, name, line), name, line);
    CMOE_CHECK(divisor != 0, "chat template: line {}: division by zero", line);
    return need_integer(value, name, line) % divisor == 0;
  }
  if (name == "eq" || name == "equalto" || name == "sameas") return equal(value, need(arguments, 0, name, line));
  if (name == "ne") return !equal(value, need(arguments, 0, name, line));
  if (name == "in") {
    const List list = items_of(need(arguments, 0, name, line), line);
    return std::any_of(list.begin(), list.end(), [&](const Value& item) { return equal(item, value); });
  }
  fail("chat template: line {}: test '{}' is not supported", line, name);
}

Value call_method(const std::string& name, const Value& value, const Arguments& arguments, int line) {
  if (const Dict* dict = value.dict()) {
    if (name == "items") return items_of_dict(value, name, line);
    if (name == "get") {
      const std::string& key = need_string(need(arguments, 0, name, line), "key", line);
      const Value* found = find_member(*value.dict(), key);
      const Value* fallback = arguments.find(1, "default");
      return found ? *found : fallback ? *fallback : Value(None{});
    }
    List list;
    if (name == "keys" || name == "values") {
      for (const auto& [key, member] : *dict) list.push_back(name == "keys" ? Value(key) : member);
      return list;
    }
  }
  if (const std::string* text = value.string()) {
    if (name == "strip") return stripped(*text, arguments.find(0, "chars"), true, true, line);
    if (name == "lstrip") return stripped(*text, arguments.find(0, "chars"), true, false, line);
    if (name == "rstrip") return stripped(*text, arguments.find(0, "chars"), false, true, line);
    if (name == "split") return split(*text, arguments, line);
    if (name == "upper" || name == "lower") return change_case(*text, name == "upper");
    if (name == "capitalize") return capitalized(*text, false);
    if (name == "title") return capitalized(*text, true);
    if (name == "replace") return apply_filter("replace", value, arguments, line);
    if (name == "startswith" || name == "endswith") {
      const std::string& part = need_string(need(arguments, 0, name, line), name, line);
      return name == "startswith" ? text->starts_with(part) : text->ends_with(part);
    }
    if (name == "find") {  // characters before the hit, as Python counts
      const size_t hit = text->find(need_string(need(arguments, 0, name, line), name, line));
      return hit == std::string::npos ? int64_t{-1} : length_of(text->substr(0, hit), line);
    }
    if (name == "join") {
      Arguments separator;
      separator.values.push_back(value);
      return apply_filter("join", need(arguments, 0, name, line), separator, line);
    }
  }
  fail("chat template: line {}: method '{}' of {} is not supported", line, name, type_name(value));
}

Value call_function(const std::string& name, const Arguments& arguments, int line) {
  if (name == "raise_exception") fail("chat template: {}", to_text(need(arguments, 0, name, line)));
  if (name == "namespace" || name == "dict") {
    CMOE_CHECK(arguments.values.empty(), "chat template: line {}: {} takes named arguments only", line, name);
    return Dict(arguments.named.begin(), arguments.named.end());
  }
  if (name == "range") {
    const size_t count = arguments.values.size();
    CMOE_CHECK(count >= 1 && count <= 3, "chat template: line {}: range takes 1 to 3 arguments; found {}", line, count);
    const int64_t begin = count == 1 ? 0 : need_integer(arguments.values[0], name, line);
    const int64_t end = need_integer(arguments.values[count == 1 ? 0 : 1], name, line);
    const int64_t step = count == 3 ? need_integer(arguments.values[2], name, line) : 1;
    CMOE_CHECK(step != 0, "chat template: line {}: range with step 0", line);
    List list;
    for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
      CMOE_CHECK(static_cast<int64_t>(list.size()) < kMaxRange, "chat template: line {}: range of more than {}", line,
                 kMaxRange);
      list.emplace_back(i);
    }
    return list;
  }
  fail("chat template: line {}: function '{}' is not supported", line, name);
}

}  // namespace cmoe::jinja
