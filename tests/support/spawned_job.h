#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace cmoe {

/// A program that runs beside the test, usually mpirun with its ranks, so that they can be hit by signals while they work.
/// What is left of it when the object goes is killed.
class SpawnedJob {
 public:
  /// @param words  the program, found on PATH, and its arguments. @param folder  where stdout and stderr are kept.
  SpawnedJob(std::vector<std::string> words, const std::string& folder) : out_(folder + "/stdout"), err_(folder + "/stderr") {
    std::vector<char*> argv, envp;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::vector<std::string> environment = environment_at_start();
    for (std::string& entry : environment) envp.push_back(entry.data());
    envp.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("fork failed");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that is cut off leaves no job behind
    const int flags = O_WRONLY | O_CREAT | O_TRUNC;
    const int in = ::open("/dev/null", O_RDONLY), out = ::open(out_.c_str(), flags, 0600),
              err = ::open(err_.c_str(), flags, 0600);
    if (::dup2(in, 0) < 0 || ::dup2(out, 1) < 0 || ::dup2(err, 2) < 0) ::_exit(126);
    ::execvpe(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  ~SpawnedJob() {
    if (code_ >= 0) return;
    for (const pid_t rank : children()) ::kill(rank, SIGKILL);
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  SpawnedJob(const SpawnedJob&) = delete;
  SpawnedJob& operator=(const SpawnedJob&) = delete;

  pid_t pid() const { return pid_; }

  /// Waits until `condition` holds; false when the job ended before, or after 60 s.
  bool wait_until(const std::function<bool()>& condition) {
    for (int i = 0; i < 60000 && !poll_end(); ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  /// The process of a rank, once it watches the others; 0 before. For a job without mpirun, rank 0 is the job itself.
  pid_t watching_rank(int rank) const {
    for (const pid_t pid : children()) {
      const std::string environment = read("/proc/" + std::to_string(pid) + "/environ");
      const std::string name = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank);
      if (environment.find(name + '\0') != std::string::npos && has_thread(pid, "heartbeat")) return pid;
    }
    return 0;
  }

  /// Waits for the end; the exit code, 128 + the signal that ended it, or -1 when it still runs after `seconds`.
  int wait(double seconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (!poll_end() && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return code_;
  }

  std::string err() const { return read(err_); }
  std::string out() const { return read(out_); }

  /// Lines of stderr that tell a cause.
  std::vector<std::string> causes() const {
    std::vector<std::string> lines;
    std::ifstream file(err_);
    for (std::string line; std::getline(file, line);) {
      if (line.find("error: ") != std::string::npos) lines.push_back(line);
    }
    return lines;
  }

 private:
  // As this process was started: MPI adds names of its own, which the job would take for its launcher's.
  static const std::vector<std::string>& environment_at_start() { return kEnvironment; }
  static inline const std::vector<std::string> kEnvironment = [] {
    std::vector<std::string> copy;
    for (char** entry = environ; *entry != nullptr; ++entry) copy.emplace_back(*entry);
    return copy;
  }();

  static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  static bool has_thread(pid_t pid, const std::string& name) {
    std::error_code gone;
    for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", gone)) {
      if (read(task.path() / "comm") == name + "\n") return true;
    }
    return false;
  }

  // All processes below this one.
  std::vector<pid_t> children() const {
    std::vector<pid_t> found{pid_};
    for (size_t i = 0; i < found.size(); ++i) {
      const std::string task = "/proc/" + std::to_string(found[i]) + "/task/" + std::to_string(found[i]) + "/children";
      std::ifstream list(task);
      for (pid_t child; list >> child;) found.push_back(child);
    }
    return found;
  }

  bool poll_end() {
    int status = 0;
    if (code_ < 0 && ::waitpid(pid_, &status, WNOHANG) == pid_) {
      code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return code_ >= 0;
  }

  std::string out_, err_;
  pid_t pid_ = -1;
  int code_ = -1;
};

}  // namespace cmoe
