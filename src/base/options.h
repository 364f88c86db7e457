#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace cmoe {

/// What a number may be, both ends included.
template <class T>
struct Limits {
  T least = std::numeric_limits<T>::lowest();
  T most = std::numeric_limits<T>::max();
};

/// The options of one sub-command. Each is bound to a variable, usually a field of an options struct of the same name; what the
/// variable holds at that moment is the default. Values come, in this order of strength, from the command line, a file named by
/// --config, the environment (CMOE_GROUP_SIZE for --group-size), the default.
///
///     Options options("cmoe carve", "Turns a dense model into a mixture of experts.");
///     options.positional("model", &job.model, "folder of the dense model");
///     options.add("group-size", &job.group_size, "neurons per group", Limits<int64_t>{.least = 1});
///     if (!options.parse(argc, argv)) { print(options.help()); return 0; }
///
/// Names are written with '-'; '_' is accepted wherever a user writes one. The bound variables must outlive parse().
class Options {
 public:
  using EnvironmentLookup = std::function<const char*(const char* name)>;

  /// @param command  as the user types it; @param description  a sentence or more, wrapped by help().
  Options(std::string command, std::string description);

  void add(const std::string& name, std::string* value, const std::string& help);
  void add(const std::string& name, int64_t* value, const std::string& help, Limits<int64_t> limits = {});
  void add(const std::string& name, double* value, const std::string& help, Limits<double> limits = {});
  /// A flag: `--name`, or `--name=false` to take back what a config file sets.
  void add(const std::string& name, bool* value, const std::string& help);
  /// May be given several times; each value is appended. A stronger source replaces all values of a weaker one.
  void add(const std::string& name, std::vector<std::string>* values, const std::string& help);
  /// One of a list of words.
  void add_choice(const std::string& name, std::string* value, std::vector<std::string> choices, const std::string& help);

  /// An argument without a name, in the order of declaration; `--name value` and the config file work too. Required.
  void positional(const std::string& name, std::string* value, const std::string& help);
  /// All remaining arguments without a name; may be none. Declared last.
  void positional_rest(const std::string& name, std::vector<std::string>* values, const std::string& help);
  /// parse() refuses to go on without this option.
  void require(const std::string& name);

  /// Reads all sources into the bound variables. argv[0] is skipped. Returns false when --help was asked for; nothing is set
  /// then.
  /// @throws Error naming the option, the value, where it came from and what was expected.
  bool parse(int argc, const char* const* argv);
  bool parse(int argc, const char* const* argv, const EnvironmentLookup& environment);

  /// True when a source other than the default gave this option. @throws Error when no such option is declared.
  bool given(const std::string& name) const;

  std::string help() const;
  /// The values after parse() as `key = value` lines, to be kept beside the output; --config reads it back.
  std::string effective_config() const;

 private:
  // Converts the texts of one option and stores them; throws what was expected of the text that does not fit.
  using Store = std::function<void(const std::vector<std::string>& texts)>;
  struct Entry {
    std::string name, help, value_name;  // value_name is empty for a flag
    bool positional = false, repeated = false, required = false;
    Store store;
    std::function<std::vector<std::string>()> current;  // the variable's value as texts that `store` reads back
    bool given = false;
    std::string default_text;
  };
  struct Given {
    std::string key, text, where;  // where: how the message names this place, "option --samples"
  };

  Entry& declare(const std::string& name, const std::string& help, const std::string& value_name);
  const Entry* find(const std::string& name) const;
  std::vector<Given> read_command_line(int argc, const char* const* argv, bool* help_asked) const;
  std::vector<Given> read_config(const std::string& path) const;
  std::vector<Given> read_environment(const EnvironmentLookup& lookup) const;
  void apply(const std::vector<Given>& values);
  std::string nearest_option(const std::string& name) const;

  std::string command_, description_;
  std::vector<Entry> entries_;
  std::string config_path_;
};

/// Turns an option's name into its environment variable: "group-size" -> "CMOE_GROUP_SIZE".
std::string environment_name(const std::string& option);

}  // namespace cmoe
