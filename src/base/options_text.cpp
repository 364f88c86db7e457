// What Options prints: the help of a sub-command and the effective configuration.

#include <fmt/format.h>

#include <algorithm>

#include "base/config_file.h"
#include "base/options.h"
#include "base/version.h"

namespace cmoe {
namespace {

constexpr size_t kColumns = 100, kHelpColumn = 30;

// Breaks at spaces; the first line starts at column `at`, the others at `indent`.
std::string wrapped(const std::string& text, size_t at, size_t indent) {
  std::string out;
  size_t column = at, begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (column > indent && column + end - begin > kColumns) {
      out += fmt::format("\n{:{}}", "", indent);
      column = indent;
    } else if (begin > 0) {
      out += ' ';
      ++column;
    }
    out += text.substr(begin, end - begin);
    column += end - begin;
    begin = end + 1;
  }
  return out + "\n";
}

std::string help_entry(const std::string& left, const std::string& help) {
  std::string line = "  " + left;
  if (line.size() + 2 > kHelpColumn) line += '\n';
  const size_t column = line.back() == '\n' ? 0 : line.size();
  line.append(kHelpColumn - column, ' ');
  return line + wrapped(help, kHelpColumn, kHelpColumn);
}

}  // namespace

std::string Options::help() const {
  std::string usage = "usage: " + command_, arguments, options;
  for (const Entry& entry : entries_) {
    if (entry.positional) {
      usage += entry.repeated ? " [<" + entry.name + ">...]" : " <" + entry.name + ">";
      arguments += help_entry("<" + entry.name + ">", entry.help);
      continue;
    }
    if (entry.name == "config") continue;  // comes last, with --help
    std::string notes;
    const std::string value = fmt::format("{}", fmt::join(entry.current(), ", "));
    const std::string& default_text = entry.given ? entry.default_text : value;
    if (entry.repeated) notes = "may be repeated";
    if (entry.required) notes = "required";
    if (!entry.value_name.empty() && !entry.required && !default_text.empty()) notes = "default " + default_text;
    const std::string left = "--" + entry.name + (entry.value_name.empty() ? "" : " " + entry.value_name);
    options += help_entry(left, entry.help + (notes.empty() ? "" : " (" + notes + ")"));
  }
  options += help_entry("--config FILE", find("config")->help) + help_entry("-h, --help", "show this text");
  std::string text = usage + " [options]\n\n" + wrapped(description_, 0, 0);
  if (!arguments.empty()) text += "\narguments\n" + arguments;
  return text + "\noptions\n" + options + "\n" +
         wrapped(
             "Every option can also be a line `key = value` of the --config file, or an environment variable such as "
             "CMOE_CONFIG. The "
             "command line wins over the file, the file over the environment.",
             0, 0);
}

std::string Options::effective_config() const {
  std::string text = "# " + command_ + ", cmoe " + version_string() + "\n";
  for (const Entry& entry : entries_) {
    if (entry.name == "config") continue;
    for (const std::string& value : entry.current()) text += config_line(entry.name, value);
  }
  return text;
}

}  // namespace cmoe
