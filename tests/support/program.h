#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/temporary_directory.h"

namespace cmoe {

/// What a run of a program left behind.
struct ProgramResult {
  int code = -1;  ///< exit code, or 128 + signal
  std::string out, err;
};

/// How to run it.
struct ProgramOptions {
  int ranks = 1;                         ///< more than one starts mpirun
  std::vector<std::string> environment;  ///< NAME=value, added
  std::string folder;                    ///< current folder; empty keeps this one
  std::string kill_when_exists;          ///< SIGKILL as soon as this file exists
};

namespace program_detail {

// The environment as this process was started: MPI adds names of its own to it, which a child would take for its launcher's.
inline const std::vector<std::string> kEnvironment = [] {
  std::vector<std::string> copy;
  for (char** entry = environ; *entry != nullptr; ++entry) copy.emplace_back(*entry);
  return copy;
}();

inline std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace program_detail

/// Runs `words[0]`, found on PATH, and waits for it.
inline ProgramResult run_program(std::vector<std::string> words, const ProgramOptions& options = {}) {
  const TemporaryDirectory scratch;
  const std::string out = scratch / "out", err = scratch / "err";
  std::vector<std::string> environment = program_detail::kEnvironment;
  environment.insert(environment.end(), options.environment.begin(), options.environment.end());
  std::vector<char*> argv = program_detail::pointers(words), envp = program_detail::pointers(environment);
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    const int out_fd = ::open(out.c_str(), O_WRONLY | O_CREAT, 0600), err_fd = ::open(err.c_str(), O_WRONLY | O_CREAT, 0600);
    const int in_fd = ::open("/dev/null", O_RDONLY);
    if (::dup2(in_fd, 0) < 0 || ::dup2(out_fd, 1) < 0 || ::dup2(err_fd, 2) < 0) ::_exit(126);
    if (!options.folder.empty() && ::chdir(options.folder.c_str()) != 0) ::_exit(126);
    ::execvpe(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  int status = 0;
  bool killed = options.kill_when_exists.empty();
  while (::waitpid(child, &status, killed ? 0 : WNOHANG) == 0) {
    if (std::filesystem::exists(options.kill_when_exists)) {
      ::kill(child, SIGKILL);
      killed = true;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  return {
      .code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), .out = read_text(out), .err = read_text(err)};
}

/// Runs the program under test (CMOE_BINARY) with `arguments`, on one thread a rank.
inline ProgramResult run_cmoe(const std::vector<std::string>& arguments, const ProgramOptions& options = {}) {
  const char* binary = std::getenv("CMOE_BINARY");
  if (binary == nullptr) throw std::runtime_error("CMOE_BINARY is not set; run this test through ctest");
  std::vector<std::string> words;
  if (options.ranks > 1) words = {"mpirun", "-n", std::to_string(options.ranks)};
  words.emplace_back(binary);
  words.insert(words.end(), arguments.begin(), arguments.end());
  ProgramOptions one_thread = options;
  one_thread.environment.emplace_back("CMOE_THREADS=1");
  return run_program(std::move(words), one_thread);
}

}  // namespace cmoe
