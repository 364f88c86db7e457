#include "comm/rank_watch.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace cmoe {
namespace {

// An error that every rank meets reaches the speaker from all of them within this time, so that it is told as one.
constexpr double kErrorSettles = 0.3;
// A fault that ends a process may be told by another rank as an error; connections close in the same moment.
constexpr double kClosingSettles = 0.1;

}  // namespace

RankWatch::RankWatch(int rank, std::vector<std::string> hosts, double now)
    : rank_(rank), hosts_(std::move(hosts)), peers_(hosts_.size()) {
  forgive(now);
}

void RankWatch::set_timeout(double timeout_s, double now) {
  timeout_s_ = timeout_s;
  forgive(now);
}

double RankWatch::beat_interval_s() const { return timeout_s_ > 0 ? std::min(1.0, timeout_s_ / 10) : 1.0; }

void RankWatch::heard(int peer, double now, const Stage& stage, double beat_interval_s) {
  Peer& heard = peers_[static_cast<size_t>(peer)];
  heard.last_heard = now;
  heard.stage = stage;
  heard.beat_interval_s = beat_interval_s;
}

void RankWatch::left(int peer) { peers_[static_cast<size_t>(peer)].left = true; }

void RankWatch::closed(int peer, double now) {
  const Peer& lost = peers_[static_cast<size_t>(peer)];
  if (!lost.left && !lost.lost) lose(peer, Kind::closed, "", now);
}

void RankWatch::add(const Report& report, double now) {
  const bool known = std::any_of(reports_.begin(), reports_.end(),
                                 [&](const Report& r) { return r.about == report.about && r.kind == report.kind; });
  if (known) return;
  if (reports_.empty()) first_report_ = now;
  reports_.push_back(report);
}

void RankWatch::forgive(double now) {
  for (Peer& peer : peers_) peer.last_heard = now;
}

std::vector<RankWatch::Report> RankWatch::find_lost(double now) {
  for (size_t r = 0; r < peers_.size() && timeout_s_ > 0; ++r) {
    const Peer& peer = peers_[r];
    if (static_cast<int>(r) == rank_ || peer.left || peer.lost) continue;
    // Ranks read --rank-timeout at different moments: one that still beats slowly is not late yet.
    const double limit = std::max(0.8 * timeout_s_, 2.5 * peer.beat_interval_s);
    if (now - peer.last_heard > limit) lose(static_cast<int>(r), Kind::silent, fmt::format("{:.2g}", limit), now);
  }
  return std::exchange(untold_, {});
}

std::optional<RankWatch::Verdict> RankWatch::decide(double now) const {
  if (reports_.empty()) return std::nullopt;
  int speaker = 0;
  bool all_failed = true;
  std::string text;
  bool one_text = true;
  for (int r = static_cast<int>(peers_.size()) - 1; r >= 0; --r) {
    const bool lost = peers_[static_cast<size_t>(r)].lost;
    all_failed = all_failed && !lost && failed(r);
    if (alive(r)) speaker = r;
  }
  for (const Report& report : reports_) {
    if (!text.empty() && report.text != text) one_text = false;
    text = report.text;
  }
  const Report& chosen = cause();
  const double waited = now - first_report_;
  if (speaker == rank_) {
    const double settle = chosen.kind == Kind::error ? kErrorSettles : chosen.kind == Kind::closed ? kClosingSettles : 0;
    if (!all_failed && waited < settle) return std::nullopt;
  } else if (waited < std::clamp(timeout_s_ / 10, 0.5, 2.0)) {
    return std::nullopt;
  }
  // What all ranks say alike, or rank 0 says of the user's own doing, needs no rank.
  const bool plain = (all_failed && one_text) ||
                     (chosen.about == 0 && chosen.kind == Kind::error && chosen.exit_code == static_cast<int>(ExitCode::user));
  return Verdict{
      .line = plain ? chosen.text : describe(chosen), .exit_code = std::max(1, chosen.exit_code), .orderly = all_failed};
}

bool RankWatch::alive(int rank) const {
  const Peer& peer = peers_[static_cast<size_t>(rank)];
  return rank == rank_ || (!peer.left && !peer.lost);
}

bool RankWatch::failed(int rank) const {
  return std::any_of(reports_.begin(), reports_.end(),
                     [&](const Report& r) { return r.about == rank && r.kind == Kind::error; });
}

void RankWatch::lose(int peer, Kind kind, std::string text, double now) {
  Peer& lost = peers_[static_cast<size_t>(peer)];
  lost.lost = true;
  // A rank that told its error and is gone has been reported already.
  const Report report{.kind = kind, .about = peer, .exit_code = 1, .stage = lost.stage, .text = std::move(text)};
  add(report, now);
  untold_.push_back(report);
}

// An error explains more than a closed connection, and that more than silence; among equals the first told.
const RankWatch::Report& RankWatch::cause() const {
  return *std::min_element(reports_.begin(), reports_.end(), [](const Report& a, const Report& b) { return a.kind < b.kind; });
}

std::string RankWatch::describe(const Report& report) const {
  const std::string who = fmt::format("rank {} on host {}", report.about, hosts_[static_cast<size_t>(report.about)]);
  const std::string where = to_string(report.stage);
  switch (report.kind) {
    case Kind::closed:
      return fmt::format(
          "{} ended without a word; last seen in {}; it was killed or crashed: look for a crash or the out-of-memory killer on "
          "that host",
          who, where);
    case Kind::silent:
      return fmt::format(
          "{} sent no heartbeat for {} s; last seen in {}; it is stopped or its network is gone (--rank-timeout sets the "
          "limit)",
          who, report.text, where);
    case Kind::error:
      break;
  }
  return fmt::format("{}, in {}: {}", who, where, report.text);
}

}  // namespace cmoe
