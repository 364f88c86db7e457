// Speed of dispatch and combine against a plain exchange of the same bytes between the same ranks.
//   mpirun -n 2 bench_dispatch [hidden_size ...]
// Experts return their rows, so that combine has a known result, checked before anything is timed. The ways are timed in turn,
// and the best of the repetitions counts (each the time of its slowest rank): on a machine with other work the median is that
// work's.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>

#include "base/error.h"
#include "moe/dispatcher.h"
#include "moe/random_routing.h"

using namespace cmoe;

namespace {

constexpr int32_t kExperts = 14;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Every token takes k experts, all sets equally likely, weights sum to 1.
Routing top_k(int64_t tokens, int32_t k, std::mt19937_64& random) {
  std::vector<int32_t> all(kExperts);
  for (int32_t e = 0; e < kExperts; ++e) all[static_cast<size_t>(e)] = e;
  Routing routing;
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    append_token(routing, {all.begin(), all.begin() + k}, random);
  }
  std::fill(routing.weight.begin(), routing.weight.end(), 1.0f / static_cast<float>(k));
  return routing;
}

// One layer through a dispatcher, with experts that return their rows.
struct Layer {
  Communicator& comm;
  const ExpertPlacement& placement;
  const Routing& routing;
  const Tensor& x;
  std::unique_ptr<Dispatcher> dispatcher;
  Tensor y = Tensor(DType::f32, x.shape());
  std::vector<int64_t> served = {};  // [ranks] pairs of each home rank
  ExchangeReport report = {};

  void run() {
    Dispatched dispatched = dispatcher->dispatch(x, routing, placement);
    const auto& begin = dispatched.handle.served_begin;
    served.clear();
    for (size_t r = 0; r + 1 < begin.size(); ++r) served.push_back(begin[r + 1] - begin[r]);
    report = dispatcher->combine(dispatched.rows, std::move(dispatched.handle), y);
  }

  void check() {
    std::fill_n(y.data<float>(), y.size(), 0.0f);
    run();
    for (int64_t i = 0; i < y.size(); ++i) {
      const float expected = x.data<float>()[i];
      if (std::abs(y.data<float>()[i] - expected) > 1e-5f * (1 + std::abs(expected))) {
        comm.abort(fmt::format("bench_dispatch: element {} came back as {}; expected {}", i, y.data<float>()[i], expected), 1);
      }
    }
  }
};

// The same bytes to the same ranks by two plain calls: rows out, partial results back.
struct Plain {
  Communicator& comm;
  std::vector<int64_t> out, back, out_from, back_from;
  std::vector<char> a, b, c, d;

  Plain(Communicator& group, std::vector<int64_t> bytes_out, std::vector<int64_t> bytes_back)
      : comm(group),
        out(std::move(bytes_out)),
        back(std::move(bytes_back)),
        out_from(comm.all_to_all(out)),
        back_from(comm.all_to_all(back)) {
    const auto room = [](std::vector<char>& memory, const std::vector<int64_t>& bytes) {
      int64_t total = 0;
      for (int64_t n : bytes) total += n;
      memory.assign(static_cast<size_t>(total), 1);
    };
    room(a, out), room(b, out_from), room(c, back), room(d, back_from);
  }

  void run() {
    comm.all_to_all_v(a.data(), out, b.data(), out_from, 1);
    comm.all_to_all_v(c.data(), back, d.data(), back_from, 1);
  }
};

void measure(Communicator& comm, int64_t d, int64_t tokens, int32_t k) {
  const auto rank = static_cast<size_t>(comm.rank());
  const int ranks = comm.size();
  std::mt19937_64 random(100 + rank);
  const auto placement = ExpertPlacement::contiguous(kExperts, ranks);
  const Routing routing = top_k(tokens, k, random);
  const Tensor x = random_rows(tokens, d, random);
  Layer to_ranks{comm, placement, routing, x, make_dispatcher(comm, {DispatcherKind::all_to_all})};
  Layer to_all{comm, placement, routing, x, make_dispatcher(comm, {DispatcherKind::all_gather})};
  to_ranks.check();
  to_all.check();

  std::vector<int64_t> out(static_cast<size_t>(ranks), 0), last(out.size(), -1), back = to_ranks.served;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int32_t e : routing.experts(t)) {
      const auto r = static_cast<size_t>(placement.rank_for(GlobalExpert{e}, comm.rank()));
      out[r] += r == rank ? 0 : 4 + (last[r] == t ? 0 : 4 + 4 * d);
      last[r] = t;
    }
  }
  for (size_t r = 0; r < back.size(); ++r) back[r] *= r == rank ? 0 : 4 * d;
  Plain plain(comm, out, back);

  const auto repeats = std::clamp<int64_t>((int64_t{1} << 30) / (tokens * d * 4 * k), 15, 400);
  // Best of: whole plain, all_to_all, all_gather; then the parts of all_to_all.
  std::vector<double> best(6, 1e300);
  for (int64_t i = 0; i < repeats; ++i) {
    const auto timed = [&](const std::function<void()>& run) {
      comm.barrier();
      const double start = now();
      run();
      return now() - start;
    };
    std::vector<double> seconds{timed([&] { plain.run(); }),     timed([&] { to_ranks.run(); }),
                                timed([&] { to_all.run(); }),    to_ranks.report.dispatch_seconds,
                                to_ranks.report.combine_seconds, to_ranks.report.wait_seconds};
    comm.all_reduce_max(std::span(seconds));
    for (size_t j = 0; j < best.size(); ++j) best[j] = std::min(best[j], seconds[j]);
  }

  std::vector<int64_t> bytes{to_ranks.report.sent.total(), to_all.report.sent.total()};
  comm.all_reduce_sum(bytes);
  if (rank != 0) return;
  const double mine = static_cast<double>(bytes[0]) / ranks, gathered = static_cast<double>(bytes[1]) / ranks;
  fmt::print(
      "{:>5} {:>5} {:>6} {:>2} {:>9.0f} {:>8.3f} {:>6.2f} {:>8.3f} {:>7.0f} {:>8.3f} {:>8.3f} {:>8.3f} {:>7.0f} {:>9.0f} "
      "{:>8.3f}\n",
      ranks, d, tokens, k, mine / 1024, best[0] * 1e3, mine / best[0] / 1e9, best[5] * 1e3, 100 * best[0] / best[5],
      best[3] * 1e3, best[4] * 1e3, best[1] * 1e3, 100 * best[0] / best[1], gathered / 1024, best[2] * 1e3);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  Environment environment(argc, argv);
  Communicator& comm = environment.world();
  std::vector<int64_t> sizes;
  for (int i = 1; i < argc; ++i) sizes.push_back(std::atoll(argv[i]));
  if (sizes.empty()) sizes = {576, 4096};
  if (comm.rank() == 0) {
    fmt::print(
        "KiB: sent per rank and layer. Times in ms per layer. plain: two exchanges of the same bytes; moved: all_to_all's time "
        "in\n"
        "its exchanges, sizes included; pack: packing and grouping rows; add: packing and adding partial results.\n"
        "%: plain over moved, and over the whole of dispatch and combine.\n"
        "{:>5} {:>5} {:>6} {:>2} {:>9} {:>8} {:>6} {:>8} {:>7} {:>8} {:>8} {:>8} {:>7} {:>9} {:>8}\n",
        "ranks", "d", "tokens", "k", "KiB", "plain", "GB/s", "moved", "%", "pack", "add", "whole", "%", "KiB(ag)", "whole(ag)");
  }
  for (int64_t d : sizes) {
    for (int64_t tokens : {1, 16, 128, 512}) {
      for (int32_t k : {2, 6}) measure(comm, d, tokens, k);
    }
  }
  return 0;
}
