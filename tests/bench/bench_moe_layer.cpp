// A whole MoE layer, spread over ranks: what dispatch and combine cost beside its products, and what pieces change.
//   mpirun -n 2 bench_moe_layer [--hidden 4096] [--neurons 1376] [--shape 3,3,8] [--tokens 512] [--dtype f32|bf16] [--threads
//   1]
// `tokens` are those of all ranks; S shared experts, A of the E - S routed ones active. Random weights and a linear router
// whose threshold lets A experts through in the mean. Beside it the same layer whole on each rank, with its share of the
// tokens: the products without any exchange. Medians over repetitions, of the slowest rank.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "base/error.h"
#include "base/parallel.h"
#include "moe/moe_layer.h"
#include "moe/random_routing.h"

using namespace cmoe;

namespace {

struct Arguments {
  int64_t hidden = 4096, neurons = 1376, shared = 3, active = 3, experts = 8, tokens = 512, threads = 1;
  DType dtype = DType::f32;

  Arguments(int argc, char** argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string key = argv[i], value = argv[i + 1];
      if (key == "--hidden")
        hidden = std::stoll(value);
      else if (key == "--neurons")
        neurons = std::stoll(value);
      else if (key == "--tokens")
        tokens = std::stoll(value);
      else if (key == "--threads")
        threads = std::stoll(value);
      else if (key == "--dtype")
        dtype = value == "bf16" ? DType::bf16 : DType::f32;
      else if (key == "--shape")
        std::sscanf(value.c_str(), "%ld,%ld,%ld", &shared, &active, &experts);
      else
        fail("bench_moe_layer: unknown option {}", key);
    }
  }
  int64_t routed() const { return experts - shared; }
};

// The same weights on all ranks; each keeps the experts that `parallel` gives it.
MoeLayer make_layer(const Arguments& args, const Backend& backend, std::shared_ptr<const ExpertParallel> parallel) {
  const auto weight = [&](int64_t out, int64_t in, uint64_t seed) {
    std::mt19937_64 random(seed);
    Tensor values(DType::f32, {out, in});
    const float bound = 1.7f / std::sqrt(static_cast<float>(in));
    for (float& value : values.span<float>()) value = bound * (static_cast<float>(random() >> 40) * 0x1p-23f - 1.0f);
    return backend.prepare(values, args.dtype);
  };
  const auto ffn = [&](int64_t neurons, uint64_t seed) {
    return GatedFfn{
        weight(neurons, args.hidden, seed), weight(neurons, args.hidden, seed + 1), weight(args.hidden, neurons, seed + 2), {}};
  };
  MoeLayer layer;
  layer.shared = ffn(args.shared * args.neurons, 1);
  for (int64_t e = 0; e < args.routed(); ++e) {
    const bool held = parallel->holds(0, GlobalExpert{static_cast<int32_t>(e)});
    layer.experts.push_back(held ? ffn(args.neurons, 10 * static_cast<uint64_t>(e + 1)) : GatedFfn{});
  }
  layer.router = {.kind = RouterKind::linear, .selector = Selector::threshold, .threshold = 0.0f};
  layer.router.weight = weight(args.routed(), args.hidden, 5);
  layer.router.bias = Tensor::zeros(DType::f32, {args.routed()});
  layer.parallel = std::move(parallel);
  return layer;
}

// The threshold of the wanted mean number of experts, from scores of random tokens.
float fitting_threshold(const Arguments& args, const Backend& backend, const Router& router) {
  std::mt19937_64 random(3);
  const Tensor scores = router_scores(backend, router, random_rows(256, args.hidden, random));
  std::vector<float> all(scores.span<float>().begin(), scores.span<float>().end());
  const auto kept = static_cast<int64_t>(all.size()) * args.active / args.routed();
  std::sort(all.begin(), all.end(), std::greater<>());
  return all[static_cast<size_t>(std::clamp<int64_t>(kept, 0, static_cast<int64_t>(all.size()) - 1))];
}

// Sums of one call's stages and report; `pairs` of all ranks.
struct Sum : MoeObserver {
  void on_routing(int64_t, const Routing& routing) override { pairs += static_cast<int64_t>(routing.expert_idx.size()); }
  void on_call(int64_t, const MoeCall& call) override {
    for (size_t s = 0; s < kMoeStages; ++s) seconds[s] += call.stages[s].seconds;
    dispatch += call.report.dispatch_seconds, combine += call.report.combine_seconds, wait += call.report.wait_seconds;
    bytes += call.report.sent.total();
  }
  std::array<double, kMoeStages> seconds{};
  double dispatch = 0, combine = 0, wait = 0;
  int64_t pairs = 0, bytes = 0;
};

struct Times {
  double whole = 0, dispatch = 0, combine = 0, wait = 0;
  int64_t pairs = 0, bytes = 0;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
  return values[values.size() / 2];
}

Times measure(const MoeLayer& layer, const Backend& backend, const Tensor& input, Communicator& world) {
  std::vector<double> whole, dispatch, combine, wait;
  Times times;
  for (int i = 0; i < 7; ++i) {
    Tensor x = input.clone();
    Sum sum;
    world.barrier();
    const auto begin = std::chrono::steady_clock::now();
    layer.add_to(backend, 0, input, x, &sum);
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::vector<double> all{elapsed, sum.dispatch, sum.combine, sum.wait};
    world.all_reduce_max(std::span(all));
    if (i == 0) continue;  // buffers and pages
    whole.push_back(all[0]), dispatch.push_back(all[1]), combine.push_back(all[2]), wait.push_back(all[3]);
    std::vector<int64_t> counts{sum.pairs, sum.bytes};
    world.all_reduce_sum(counts);
    times.pairs = counts[0], times.bytes = counts[1];
  }
  times.whole = median(whole), times.dispatch = median(dispatch), times.combine = median(combine), times.wait = median(wait);
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  Environment environment(argc, argv);
  Communicator& world = environment.world();
  const Arguments args(argc, argv);
  set_num_threads(static_cast<int>(args.threads));
  const auto backend = make_cpu_backend();
  const int64_t mine = args.tokens * (world.rank() + 1) / world.size() - args.tokens * world.rank() / world.size();
  std::mt19937_64 random(100 + static_cast<uint64_t>(world.rank()));
  const Tensor input = random_rows(mine, args.hidden, random);
  const auto experts = static_cast<int32_t>(args.routed());

  if (world.rank() == 0) {
    fmt::print("{} ranks x {} threads, d {}, m {}, S{}A{}E{}, {} tokens, {}; ms of the slowest rank\n", world.size(),
               args.threads, args.hidden, args.neurons, args.shared, args.active, args.experts, args.tokens,
               name_of(args.dtype));
    fmt::print("{:>10} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7} {:>8}\n", "experts", "pieces", "layer", "dispatch", "combine",
               "wait", "d+c %", "MB sent");
  }
  const auto print = [&](const char* name, int64_t chunks, const Times& t) {
    if (world.rank() != 0) return;
    fmt::print("{:>10} {:>6} {:>9.2f} {:>9.3f} {:>9.3f} {:>9.3f} {:>7.2f} {:>8.2f}\n", name, chunks, t.whole * 1e3,
               t.dispatch * 1e3, t.combine * 1e3, t.wait * 1e3, 100 * (t.dispatch + t.combine) / t.whole,
               static_cast<double>(t.bytes) / 1e6);
    std::fflush(stdout);
  };
  float threshold = 0;
  {
    MoeLayer whole = make_layer(args, *backend, ExpertParallel::alone(1, experts));
    threshold = whole.router.threshold = fitting_threshold(args, *backend, whole.router);
    print("all here", 1, measure(whole, *backend, input, world));
  }
  for (const int64_t chunks : {1, 2, 4}) {
    const auto parallel = std::make_shared<ExpertParallel>(
        world, std::vector<ExpertPlacement>{ExpertPlacement::contiguous(experts, world.size())}, DispatcherOptions{});
    parallel->set_chunks(chunks);
    MoeLayer spread = make_layer(args, *backend, parallel);
    spread.router.threshold = threshold;
    print("spread", chunks, measure(spread, *backend, input, world));
  }
  return 0;
}
