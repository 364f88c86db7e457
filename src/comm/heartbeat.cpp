#include "comm/heartbeat.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

#include "base/log.h"
#include "base/temporary_paths.h"
#include "comm/peer_sockets.h"
#include "comm/rank_watch.h"

namespace cmoe {
namespace {

constexpr double kOrderlyEndS = 2;  // for leaving MPI after an error that all ranks met
constexpr double kLingerS = 0.2;    // of the speaker: the others read the verdict and go first
constexpr double kTroublePollS = 0.02;
constexpr double kStagePollS = 0.1;  // a new stage is told this soon; a new layer with the next beat
constexpr double kStoodStillS = 1;
constexpr uint32_t kMaxPayload = 1 << 16;
constexpr size_t kMaxText = 4000;

enum class Message : uint32_t { beat, report, verdict, goodbye };
struct Header {
  Message message = Message::beat;
  uint32_t bytes = 0;
};

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string encode(const RankWatch::Report& report) {
  return fmt::format("{} {} {} {} {}\n{}", static_cast<int>(report.kind), report.about, report.exit_code, report.stage.layer,
                     report.stage.name, report.text.substr(0, kMaxText));
}

RankWatch::Report decode_report(const std::string& payload) {
  std::istringstream in(payload);
  RankWatch::Report report;
  int kind = 0;
  in >> kind >> report.about >> report.exit_code >> report.stage.layer;
  in.get();
  std::getline(in, report.stage.name);
  std::getline(in, report.text, '\0');
  report.kind = static_cast<RankWatch::Kind>(kind);
  return report;
}

}  // namespace

class Heartbeat::Thread {
 public:
  Thread(int rank, PeerSockets peers)
      : rank_(rank),
        sockets_(std::move(peers.sockets)),
        inbox_(sockets_.size()),
        outbox_(sockets_.size()),
        watch_(rank, std::move(peers.hosts), seconds_now()),
        wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!wake_.open()) fail_internal("heartbeat: eventfd: {}", std::strerror(errno));
    // Signals are for the main thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    thread_ = std::thread([this] { run(); });
    pthread_setname_np(thread_.native_handle(), "heartbeat");
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Thread() {
    tell_thread([&] { leaving_ = true; });
    thread_.join();
  }

  void set_timeout(double seconds) {
    tell_thread([&] { timeout_ = seconds; });
  }

  void end_together(const std::string& message, ExitCode code) {
    RankWatch::Report report;
    report.about = rank_;
    report.exit_code = static_cast<int32_t>(code);
    report.stage = current_stage();
    report.text = message.substr(0, kMaxText);
    tell_thread([&] { error_.emplace(std::move(report)); });
    std::unique_lock lock(mutex_);
    may_leave_.wait(lock, [&] { return may_leave_now_; });
  }

 private:
  template <class Change>
  void tell_thread(Change change) {
    {
      const std::lock_guard lock(mutex_);
      change();
    }
    const uint64_t one = 1;
    // Cannot fail but for a full counter, which wakes as well.
    [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof one);
  }

  void run() {
    double next_beat = 0;
    for (bool leaving = false; !leaving;) {
      const double before = seconds_now();
      const double wait = watch_.in_trouble() ? kTroublePollS : std::clamp(next_beat - before, 0.0, kStagePollS);
      wait_for_input(wait);
      const double now = seconds_now();
      for (size_t peer = 0; peer < sockets_.size(); ++peer) read_from(peer, now);
      if (now - before > wait + kStoodStillS) watch_.forgive(now);
      leaving = take_orders(now);
      const Stage stage = current_stage();
      if (now >= next_beat || stage.name != told_stage_) {
        told_stage_ = stage.name;
        tell_all(Message::beat, fmt::format("{} {} {}", watch_.beat_interval_s(), stage.layer, stage.name));
        next_beat = now + watch_.beat_interval_s();
      }
      flush();
      if (orderly_deadline_ > 0) {
        if (now > orderly_deadline_) end_process(orderly_code_);
      } else if (!leaving) {
        judge(now);
      }
    }
    tell_all(Message::goodbye, "");
    flush_for(kLingerS);
  }

  void wait_for_input(double seconds) {
    std::vector<pollfd> waiting{{.fd = wake_.get(), .events = POLLIN, .revents = 0}};
    for (size_t peer = 0; peer < sockets_.size(); ++peer) {
      const short events = outbox_[peer].empty() ? POLLIN : POLLIN | POLLOUT;
      if (sockets_[peer].open()) waiting.push_back({.fd = sockets_[peer].get(), .events = events, .revents = 0});
    }
    poll(waiting.data(), waiting.size(), static_cast<int>(seconds * 1000) + 1);
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(wake_.get(), &count, sizeof count);
  }

  // What the main thread asked for; true when the thread is to end.
  bool take_orders(double now) {
    const std::lock_guard lock(mutex_);
    if (timeout_) {
      watch_.set_timeout(*timeout_, now);
      timeout_.reset();
    }
    if (error_ && !error_told_) {
      error_told_ = true;
      watch_.add(*error_, now);
      tell_all(Message::report, encode(*error_));
    }
    return leaving_;
  }

  void judge(double now) {
    for (const RankWatch::Report& report : watch_.find_lost(now)) tell_all(Message::report, encode(report));
    if (const auto verdict = watch_.decide(now)) {
      if (ftrylockfile(stdout) == 0) {  // the main thread may be inside a print that waits for ever
        std::fflush(stdout);
        funlockfile(stdout);
      }
      log_error("{}", verdict->line);
      tell_all(Message::verdict, fmt::format("{} {}", verdict->exit_code, verdict->orderly ? 1 : 0));
      flush_for(kLingerS);
      if (!verdict->orderly) wait_for_others(kLingerS);
      conclude(verdict->exit_code, verdict->orderly, now);
    }
  }

  void conclude(int exit_code, bool orderly, double now) {
    const std::lock_guard lock(mutex_);
    if (!orderly || !error_) end_process(exit_code);
    orderly_code_ = exit_code;
    orderly_deadline_ = now + kOrderlyEndS;
    may_leave_now_ = true;
    may_leave_.notify_all();
  }

  // The others go when they read the verdict; then nobody writes into a folder that is being removed.
  void wait_for_others(double seconds) {
    const double until = seconds_now() + seconds;
    for (double now = seconds_now(); now < until; now = seconds_now()) {
      bool any = false;
      for (size_t peer = 0; peer < sockets_.size(); ++peer) {
        read_from(peer, now);
        any = any || sockets_[peer].open();
      }
      if (!any) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  [[noreturn]] void end_process(int exit_code) {
    tell_all(Message::goodbye, "");
    flush_for(kLingerS);
    remove_temporary_paths();
    // Neither destructors nor MPI_Finalize: both may wait for a rank that is gone. A launcher ends the job when a rank leaves
    // like this.
    _exit(exit_code);
  }

  void tell_all(Message message, const std::string& payload) {
    const Header header{.message = message, .bytes = static_cast<uint32_t>(payload.size())};
    for (size_t peer = 0; peer < sockets_.size(); ++peer) {
      if (!sockets_[peer].open()) continue;
      // A peer that takes nothing is lost by its silence; what it does not read need not be kept.
      if (outbox_[peer].size() > kMaxPayload) continue;
      outbox_[peer].append(reinterpret_cast<const char*>(&header), sizeof header).append(payload);
    }
  }

  // Hands to the kernel what it takes now; true when nothing is left.
  bool flush() {
    bool empty = true;
    for (size_t peer = 0; peer < sockets_.size(); ++peer) {
      std::string& out = outbox_[peer];
      if (out.empty() || !sockets_[peer].open()) continue;
      const ssize_t sent = send(sockets_[peer].get(), out.data(), out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) out.erase(0, static_cast<size_t>(sent));
      empty = empty && out.empty();
    }
    return empty;
  }

  void flush_for(double seconds) {
    const double until = seconds_now() + seconds;
    while (!flush() && seconds_now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }

  void read_from(size_t peer, double now) {
    if (!sockets_[peer].open()) return;
    std::array<char, 4096> bytes;
    bool ended = false;
    for (;;) {
      const ssize_t got = recv(sockets_[peer].get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
      if (got < 0 && errno == EINTR) continue;
      if (got > 0) {
        inbox_[peer].append(bytes.data(), static_cast<size_t>(got));
        continue;
      }
      // Other errors (host unreachable, timed out) tell of the network, not of the rank: its silence will.
      ended = got == 0 || errno == ECONNRESET || errno == EPIPE;
      break;
    }
    handle_messages(peer, now);
    if (!ended) return;
    sockets_[peer].reset();
    watch_.closed(static_cast<int>(peer), now);
  }

  void handle_messages(size_t peer, double now) {
    std::string& in = inbox_[peer];
    Header header;
    while (in.size() >= sizeof header) {
      std::memcpy(&header, in.data(), sizeof header);
      if (header.bytes > kMaxPayload) {  // not our language: nothing more can be learnt from it
        in.clear();
        sockets_[peer].reset();
        return watch_.closed(static_cast<int>(peer), now);
      }
      if (in.size() < sizeof header + header.bytes) return;
      const std::string payload = in.substr(sizeof header, header.bytes);
      in.erase(0, sizeof header + header.bytes);
      handle(static_cast<int>(peer), header.message, payload, now);
    }
  }

  void handle(int peer, Message message, const std::string& payload, double now) {
    std::istringstream in(payload);
    if (message == Message::beat) {
      double interval = 1;
      Stage stage;
      in >> interval >> stage.layer;
      in.get();
      std::getline(in, stage.name);
      watch_.heard(peer, now, stage, interval);
    } else if (message == Message::report) {
      const RankWatch::Report report = decode_report(payload);
      if (report.about >= 0 && report.about < static_cast<int>(sockets_.size())) watch_.add(report, now);
    } else if (message == Message::verdict) {
      int exit_code = 1, orderly = 0;
      in >> exit_code >> orderly;
      if (orderly_deadline_ == 0) conclude(exit_code, orderly != 0, now);
    } else {
      watch_.left(peer);
    }
  }

  // The thread's own.
  const int rank_;
  std::vector<Descriptor> sockets_;  // by rank; empty for this rank and for those that are gone
  std::vector<std::string> inbox_, outbox_;
  RankWatch watch_;
  std::string told_stage_;
  double orderly_deadline_ = 0;
  int orderly_code_ = 1;

  // Shared with the main thread.
  Descriptor wake_;
  std::mutex mutex_;
  std::condition_variable may_leave_;
  bool leaving_ = false, may_leave_now_ = false, error_told_ = false;
  std::optional<double> timeout_;
  std::optional<RankWatch::Report> error_;
  std::thread thread_;
};

Heartbeat::Heartbeat(std::unique_ptr<Thread> thread) : thread_(std::move(thread)) {}

Heartbeat::~Heartbeat() = default;

std::unique_ptr<Heartbeat> Heartbeat::start(Communicator& world) {
  if (world.size() == 1) return nullptr;
  PeerSockets peers = connect_peers(world);
  for (const std::string& problem : world.all_gather_strings(peers.problem)) {
    if (problem.empty()) continue;
    if (world.rank() == 0) {
      log_warn("heartbeat: {}; a rank that is lost will not be noticed; open the TCP ports between the hosts", problem);
    }
    return nullptr;
  }
  return std::unique_ptr<Heartbeat>(new Heartbeat(std::make_unique<Thread>(world.rank(), std::move(peers))));
}

void Heartbeat::set_timeout(double seconds) { thread_->set_timeout(seconds); }

void Heartbeat::end_together(const std::string& message, ExitCode code) { thread_->end_together(message, code); }

}  // namespace cmoe
