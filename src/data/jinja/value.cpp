#include "data/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace cmoe::jinja {
namespace {

/// Python's repr() of a string.
std::string quoted(const std::string& text) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string result(1, quote);
  for (char c : text) {
    switch (c) {
      case '\n':
        result += "\\n";
        break;
      case '\r':
        result += "\\r";
        break;
      case '\t':
        result += "\\t";
        break;
      case '\\':
        result += "\\\\";
        break;
      default:
        if (c == quote) result += '\\';
        result += c;
    }
  }
  return result + quote;
}

std::string number_text(double value) {
  std::string text = fmt::format("{}", value);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

constexpr int kMaxDepth = 100;

int checked_depth(int depth) {
  CMOE_CHECK(depth <= kMaxDepth, "chat template: a value nested more than {} deep", kMaxDepth);
  return depth;
}

std::string repr(const Value& value) { return value.string() ? quoted(*value.string()) : to_text(value); }

void write_json(const Value& value, int64_t indent, int64_t level, std::string& out) {
  const auto new_line = [&](int64_t at) {
    if (indent >= 0) out += '\n' + std::string(static_cast<size_t>(indent * at), ' ');
  };
  const auto items = [&](char open, char close, size_t count, auto&& write) {
    out += open;
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) out += indent >= 0 ? "," : ", ";
      new_line(level + 1);
      write(i);
    }
    if (count > 0) new_line(level);
    out += close;
  };
  if (value.is_none() || value.is_undefined()) {
    out += "null";
  } else if (const auto* flag = value.as<bool>()) {
    out += *flag ? "true" : "false";
  } else if (const auto* text = value.string()) {
    out += nlohmann::json(*text).dump();
  } else if (const List* list = value.list()) {
    items('[', ']', list->size(), [&](size_t i) { write_json((*list)[i], indent, level + 1, out); });
  } else if (const Dict* dict = value.dict()) {
    items('{', '}', dict->size(), [&](size_t i) {
      out += nlohmann::json((*dict)[i].first).dump() + ": ";
      write_json((*dict)[i].second, indent, level + 1, out);
    });
  } else {
    out += to_text(value);
  }
}

}  // namespace

Value::Value(List list) {
  for (const Value& item : list) depth = std::max(depth, item.depth);
  depth = checked_depth(depth + 1);
  data = std::make_shared<List>(std::move(list));
}

Value::Value(Dict dict) {
  for (const auto& [name, member] : dict) depth = std::max(depth, member.depth);
  depth = checked_depth(depth + 1);
  data = std::make_shared<Dict>(std::move(dict));
}

const int64_t* Value::integer(int64_t& storage) const {
  if (const auto* flag = as<bool>()) {
    storage = *flag ? 1 : 0;
    return &storage;
  }
  return as<int64_t>();
}

std::string type_name(const Value& value) {
  if (const auto* undefined = value.as<Undefined>()) return "undefined '" + undefined->name + "'";
  constexpr const char* names[] = {"", "none", "bool", "int", "float", "string", "list", "dict"};
  return names[value.data.index()];
}

bool truth(const Value& value) {
  if (const auto* flag = value.as<bool>()) return *flag;
  if (const auto* number = value.as<int64_t>()) return *number != 0;
  if (const auto* number = value.as<double>()) return *number != 0;
  if (const auto* text = value.string()) return !text->empty();
  if (const List* list = value.list()) return !list->empty();
  if (const Dict* dict = value.dict()) return !dict->empty();
  return false;
}

bool equal(const Value& a, const Value& b) {
  if (a.list() ? a.list() == b.list() : a.dict() && a.dict() == b.dict()) return true;  // the same one
  int64_t a_storage = 0, b_storage = 0;
  const int64_t* a_int = a.integer(a_storage);
  const int64_t* b_int = b.integer(b_storage);
  if (a_int && b_int) return *a_int == *b_int;
  const auto* a_real = a.as<double>();
  const auto* b_real = b.as<double>();
  if ((a_real || a_int) && (b_real || b_int)) {
    return (a_real ? *a_real : static_cast<double>(*a_int)) == (b_real ? *b_real : static_cast<double>(*b_int));
  }
  if (a.data.index() != b.data.index()) return false;
  if (const auto* text = a.string()) return *text == *b.string();
  if (const List* list = a.list()) {
    return std::equal(list->begin(), list->end(), b.list()->begin(), b.list()->end(), equal);
  }
  if (const Dict* dict = a.dict()) {
    if (dict->size() != b.dict()->size()) return false;
    return std::all_of(dict->begin(), dict->end(), [&](const auto& member) {
      const Value* other = find_member(*b.dict(), member.first);
      return other != nullptr && equal(member.second, *other);
    });
  }
  return true;  // none and none, undefined and undefined
}

std::string to_text(const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_none()) return "None";
  if (const auto* flag = value.as<bool>()) return *flag ? "True" : "False";
  if (const auto* number = value.as<int64_t>()) return std::to_string(*number);
  if (const auto* number = value.as<double>()) return number_text(*number);
  if (const auto* text = value.string()) return *text;
  std::string result;
  if (const List* list = value.list()) {
    for (const Value& item : *list) result += (result.empty() ? "" : ", ") + repr(item);
    return "[" + result + "]";
  }
  for (const auto& [name, member] : *value.dict()) result += (result.empty() ? "" : ", ") + quoted(name) + ": " + repr(member);
  return "{" + result + "}";
}

std::string to_json(const Value& value, int64_t indent) {
  std::string out;
  write_json(value, indent, 0, out);
  return out;
}

Value* find_member(Dict& dict, const std::string& name) {
  for (auto& [key, value] : dict) {
    if (key == name) return &value;
  }
  return nullptr;
}

}  // namespace cmoe::jinja
