#include "base/options.h"

#include <algorithm>
#include <boost/program_options.hpp>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/config_file.h"
#include "base/error.h"
#include "base/nearest.h"

namespace cmoe {
namespace {

namespace po = boost::program_options;

// What a value should have been; apply() adds where it stood.
struct Unfit {
  std::string text, expected;
};

std::string with_dashes(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

template <class T>
std::string expected_number(const char* what, Limits<T> limits) {
  const bool least = limits.least != Limits<T>{}.least, most = limits.most != Limits<T>{}.most;
  if (least && most) return fmt::format("{} from {} to {}", what, limits.least, limits.most);
  if (least) return fmt::format("{} >= {}", what, limits.least);
  if (most) return fmt::format("{} <= {}", what, limits.most);
  return what;
}

template <class T>
T to_number(const std::string& text, const char* what, Limits<T> limits) {
  T value{};
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool read = code == std::errc() && end == text.data() + text.size();
  if (!read || !(value >= limits.least && value <= limits.most)) throw Unfit{text, expected_number(what, limits)};
  return value;
}

bool to_bool(const std::string& text) {
  for (const char* word : {"true", "yes", "on", "1"}) {
    if (text == word) return true;
  }
  for (const char* word : {"false", "no", "off", "0"}) {
    if (text == word) return false;
  }
  throw Unfit{text, "true or false"};
}

}  // namespace

std::string environment_name(const std::string& option) {
  std::string name = "CMOE_";
  for (const char c : option) name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

Options::Options(std::string command, std::string description)
    : command_(std::move(command)), description_(std::move(description)) {
  add("config", &config_path_, "read options from this file of `key = value` lines");
}

Options::Entry& Options::declare(const std::string& name, const std::string& help, const std::string& value_name) {
  const std::string key = with_dashes(name);
  if (find(key) || key == "help") fail_internal("option --{}: declared twice", key);
  entries_.push_back({});
  Entry& entry = entries_.back();
  entry.name = key;
  entry.help = help;
  entry.value_name = value_name;
  return entry;
}

void Options::add(const std::string& name, std::string* value, const std::string& help) {
  Entry& entry = declare(name, help, "TEXT");
  entry.store = [value](const auto& texts) { *value = texts.back(); };
  entry.current = [value] { return std::vector{*value}; };
}

void Options::add(const std::string& name, int64_t* value, const std::string& help, Limits<int64_t> limits) {
  Entry& entry = declare(name, help, "N");
  entry.store = [value, limits](const auto& texts) { *value = to_number(texts.back(), "an integer", limits); };
  entry.current = [value] { return std::vector{fmt::format("{}", *value)}; };
}

void Options::add(const std::string& name, double* value, const std::string& help, Limits<double> limits) {
  Entry& entry = declare(name, help, "X");
  entry.store = [value, limits](const auto& texts) { *value = to_number(texts.back(), "a number", limits); };
  entry.current = [value] { return std::vector{fmt::format("{}", *value)}; };  // fmt prints the shortest text that reads back
}

void Options::add(const std::string& name, bool* value, const std::string& help) {
  Entry& entry = declare(name, help, "");
  entry.store = [value](const auto& texts) { *value = to_bool(texts.back()); };
  entry.current = [value] { return std::vector<std::string>{*value ? "true" : "false"}; };
}

void Options::add(const std::string& name, std::vector<std::string>* values, const std::string& help) {
  Entry& entry = declare(name, help, "TEXT");
  entry.repeated = true;
  entry.store = [values](const auto& texts) { *values = texts; };
  entry.current = [values] { return *values; };
}

void Options::add_choice(const std::string& name, std::string* value, std::vector<std::string> choices,
                         const std::string& help) {
  Entry& entry = declare(name, help, fmt::format("{}", fmt::join(choices, "|")));
  entry.store = [value, choices = std::move(choices)](const auto& texts) {
    const bool known = std::find(choices.begin(), choices.end(), texts.back()) != choices.end();
    if (!known) throw Unfit{texts.back(), fmt::format("one of {}", fmt::join(choices, ", "))};
    *value = texts.back();
  };
  entry.current = [value] { return std::vector{*value}; };
}

void Options::positional(const std::string& name, std::string* value, const std::string& help) {
  add(name, value, help);
  entries_.back().positional = entries_.back().required = true;
}

void Options::positional_rest(const std::string& name, std::vector<std::string>* values, const std::string& help) {
  add(name, values, help);
  entries_.back().positional = true;
}

void Options::require(const std::string& name) {
  for (Entry& entry : entries_) {
    if (entry.name == with_dashes(name)) {
      entry.required = true;
      return;
    }
  }
  fail_internal("option --{}: not declared", name);
}

bool Options::given(const std::string& name) const {
  const Entry* entry = find(with_dashes(name));
  if (!entry) fail_internal("option --{}: not declared", name);
  return entry->given;
}

bool Options::parse(int argc, const char* const* argv) { return parse(argc, argv, std::getenv); }

bool Options::parse(int argc, const char* const* argv, const EnvironmentLookup& environment) {
  for (Entry& entry : entries_) {
    const std::vector<std::string> texts = entry.current();
    entry.default_text = fmt::format("{}", fmt::join(texts, ", "));
    entry.given = false;
  }
  bool help_asked = false;
  const std::vector<Given> from_command_line = read_command_line(argc, argv, &help_asked);
  if (help_asked) return false;
  const std::vector<Given> from_environment = read_environment(environment);

  // Weakest first; each source replaces what a weaker one gave.
  apply(from_environment);
  for (const Given& value : from_command_line) {
    if (value.key == "config") config_path_ = value.text;
  }
  if (!config_path_.empty()) apply(read_config(config_path_));
  apply(from_command_line);

  for (const Entry& entry : entries_) {
    if (!entry.required || entry.given) continue;
    if (entry.positional) fail("argument <{}>: missing; expected {}; see {} --help", entry.name, entry.help, command_);
    fail("option --{}: missing; expected {}; see {} --help", entry.name, entry.help, command_);
  }
  return true;
}

std::vector<Options::Given> Options::read_command_line(int argc, const char* const* argv, bool* help_asked) const {
  po::options_description known;
  known.add_options()("help,h", "");
  std::vector<const Entry*> order;  // of arguments without a name
  for (const Entry& entry : entries_) {
    known.add_options()(entry.name.c_str(), po::value<std::string>());
    if (entry.positional) order.push_back(&entry);
  }
  std::vector<std::string> arguments;
  bool only_positional = false;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    only_positional = only_positional || argument == "--";
    if (!only_positional && argument.starts_with("--")) {
      const size_t end = std::min(argument.find('='), argument.size());
      argument = with_dashes(argument.substr(0, end)) + argument.substr(end);
      // Boost would give a flag the argument behind it: `inspect --json PATH`.
      const Entry* flag = find(argument.substr(2));
      if (flag && flag->value_name.empty()) argument += "=true";
    }
    arguments.push_back(std::move(argument));
  }

  std::vector<Given> values;
  size_t next = 0;
  try {
    // No guessing: `--sample` must not become --samples today and something else in the next version.
    const int style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
    const auto parsed = po::command_line_parser(arguments).options(known).style(style).allow_unregistered().run();
    for (const po::option& option : parsed.options) {
      *help_asked = *help_asked || option.string_key == "help";
      if (*help_asked) return {};
      if (option.unregistered) {
        const std::string name = option.original_tokens.front().substr(0, option.original_tokens.front().find('='));
        const std::string hint = nearest_option(name);
        fail("option {}: unknown; {}", name, hint.empty() ? "see " + command_ + " --help" : "did you mean --" + hint + "?");
      }
      for (const std::string& text : option.value) {
        if (option.position_key < 0) {
          values.push_back({option.string_key, text, "option --" + option.string_key});
          continue;
        }
        CMOE_CHECK(next < order.size(), "argument '{}': not expected; see {} --help", text, command_);
        values.push_back({order[next]->name, text, "argument <" + order[next]->name + ">"});
        next += order[next]->repeated ? 0 : 1;
      }
    }
  } catch (const po::error_with_option_name& error) {
    const std::string name = error.get_option_name();
    const Entry* entry = find(name.substr(std::min(name.find_first_not_of('-'), name.size())));
    fail("option {}: no value given; expected {}", name, entry && !entry->value_name.empty() ? entry->value_name : "a value");
  }
  return values;
}

std::vector<Options::Given> Options::read_config(const std::string& path) const {
  std::ifstream file(path, std::ios::binary);
  CMOE_CHECK(file.is_open() && !std::filesystem::is_directory(path),
             "option --config: '{}' cannot be read; expected a file of key = value lines", path);
  std::stringstream text;
  text << file.rdbuf();
  std::vector<Given> values;
  for (const ConfigLine& line : parse_config(text.str(), path)) {
    const std::string key = with_dashes(line.key), where = fmt::format("{}:{}: key '{}'", path, line.line, line.key);
    if (!find(key) || key == "config") {
      const std::string hint = nearest_option(key);
      fail("{}: unknown; {}", where, hint.empty() ? "see " + command_ + " --help" : "did you mean '" + hint + "'?");
    }
    values.push_back({key, line.value, where});
  }
  return values;
}

std::vector<Options::Given> Options::read_environment(const EnvironmentLookup& lookup) const {
  std::vector<Given> values;
  for (const Entry& entry : entries_) {
    const std::string name = environment_name(entry.name);
    if (const char* text = lookup(name.c_str())) values.push_back({entry.name, text, "environment " + name});
  }
  return values;
}

void Options::apply(const std::vector<Given>& values) {
  for (Entry& entry : entries_) {
    std::vector<std::string> texts;
    std::string where;
    for (const Given& value : values) {
      if (value.key != entry.name) continue;
      if (!entry.repeated && !texts.empty())
        fail("{}: given twice ('{}' and '{}'); expected one value", value.where, texts[0], value.text);
      texts.push_back(value.text);
      where = value.where;
    }
    if (texts.empty()) continue;
    try {
      entry.store(texts);
    } catch (const Unfit& unfit) {
      fail("{}: '{}'; expected {}", where, unfit.text, unfit.expected);
    }
    entry.given = true;
  }
}

const Options::Entry* Options::find(const std::string& name) const {
  for (const Entry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

// The declared name that a typing error most likely meant; "" when none is near.
std::string Options::nearest_option(const std::string& name) const {
  std::vector<std::string> names;
  for (const Entry& entry : entries_) names.push_back(entry.name);
  return nearest(name.substr(std::min(name.find_first_not_of('-'), name.size())), names);
}

}  // namespace cmoe
