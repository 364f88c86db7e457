// What --dry-run tells of a model that will run on several ranks.

#include "model/expert_plan.h"

#include <fmt/format.h>

#include <cstdio>

#include "base/format.h"
#include "jobs/expert_options.h"

namespace cmoe::jobs {
namespace {

// A GPU and its link to the others. Peaks are the vendor's for bf16 without sparsity; latency is what a small message takes on
// its way from kernel to kernel.
struct Machine {
  const char* name;
  double flops_per_second;
  Link link;
};
constexpr Machine kNvlink{"H100, NVLink", 989e12, {.latency_seconds = 5e-6, .bytes_per_second = 450e9}};
constexpr Machine kNetwork{"H100, 400 Gb/s network", 989e12, {.latency_seconds = 15e-6, .bytes_per_second = 50e9}};

// FFN shapes of models that people carve.
struct Shape {
  std::string name;
  int64_t layers, hidden, neurons, experts, shared, active;  // neurons: of one expert
};

Shape shape_of(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config;
  const MoeConfig& moe = *config.moe;
  return {"this model",    config.num_hidden_layers, config.hidden_size,     moe.moe_intermediate_size,
          moe.num_experts, moe.num_shared_experts,   moe.num_experts_per_tok};
}

// One layer's time on the wire and in its experts, when `tokens` tokens are at home on every rank; bf16 both ways.
void add_row(Table& table, const Shape& shape, int ranks, int64_t tokens, const Machine& machine) {
  const auto routed = static_cast<int32_t>(shape.experts - shape.shared);
  const MoeConfig moe{.num_experts = shape.experts, .num_shared_experts = shape.shared, .num_experts_per_tok = shape.active};
  const ExpertPlacement placement = ExpertPlacement::contiguous(routed, ranks);
  const WireFormat format{shape.hidden, DType::bf16};
  const std::vector<double> sizes = experts_per_token(moe);
  const WireBytes to_each = expected_wire_bytes(tokens * ranks, sizes, placement, Transport::all_to_all, format);
  const WireBytes to_all = expected_wire_bytes(tokens * ranks, sizes, placement, Transport::all_gather, format);
  const WireBytes& all =
      choose_transport(to_each.ids + to_each.rows, to_all.ids + to_all.rows) == Transport::all_gather ? to_all : to_each;
  const WireBytes one{all.counts / ranks, all.ids / ranks, all.rows / ranks, all.partials / ranks};
  const double wire = wire_seconds(one, ranks, machine.link);
  const double flop = 6.0 * static_cast<double>(shape.hidden * shape.neurons * (shape.shared + shape.active) * tokens);
  const double experts = flop / machine.flops_per_second;
  table.add_row({shape.name, fmt::format("{}", ranks), fmt::format("{}", tokens), format_bytes(one.total()),
                 fmt::format("{:.1f}", wire * 1e6), fmt::format("{:.1f}", experts * 1e6), fmt::format("{:.2f}", wire / experts),
                 format_number(static_cast<double>(shape.layers) * (wire + experts) * 1e3)});
}

void print_link(const Checkpoint& checkpoint, const Machine& machine) {
  std::printf(
      "\nOn paper, %s, bf16 on the wire, nothing overlapped: one layer's dispatch and combine against its FFN at the\n"
      "processor's peak, per rank; the last column sums both over all layers.\n",
      machine.name);
  Table table({"model", "ranks", "tokens per rank", "sent per rank", "wire us", "FFN us", "wire/FFN", "all layers ms"});
  for (const Shape& shape :
       {shape_of(checkpoint), Shape{"7B S3A3E8", 32, 4096, 1376, 8, 3, 3}, Shape{"70B S3A3E8", 80, 8192, 3584, 8, 3, 3},
        Shape{"7B S3A3E16", 32, 4096, 688, 16, 3, 3}, Shape{"70B S3A3E32", 80, 8192, 896, 32, 3, 3}}) {
    for (const int ranks : {8, 16, 32}) {
      for (const int64_t tokens : {int64_t{32}, int64_t{4096}}) add_row(table, shape, ranks, tokens, machine);
    }
  }
  std::fputs(table.text().c_str(), stdout);
}

}  // namespace

void print_expert_plan(const ExpertOptions& options, const Checkpoint& checkpoint, DType dtype, int ranks, int64_t kv_bytes,
                       int64_t step_bytes) {
  const std::vector<ExpertPlacement> placement = options.place(checkpoint, ranks);
  std::printf("%s on groups of %d ranks\n", checkpoint.path.string().c_str(), ranks);
  Table table({"rank", "routed experts", "read", "weights", "KV cache", "step", "memory"});
  for (int rank = 0; rank < ranks; ++rank) {
    const RankPlan plan = plan_rank(checkpoint, dtype, placement, rank);
    table.add_row({fmt::format("{}", rank), fmt::format("{}", plan.experts), format_bytes(plan.read_bytes),
                   format_bytes(plan.weight_bytes), format_bytes(kv_bytes), format_bytes(step_bytes),
                   format_bytes(plan.weight_bytes + kv_bytes + step_bytes)});
  }
  std::fputs(table.text().c_str(), stdout);
  if (!checkpoint.config.moe) return;
  const DType wire = options.dispatcher_options().wire;
  std::printf("expected on the wire: %s per token, all layers, %s rows (0 on one rank)\n",
              format_bytes(static_cast<int64_t>(wire_bytes_per_token(checkpoint.config, placement, wire))).c_str(),
              options.wire_dtype.c_str());
  if (options.plan_link == "nvlink") print_link(checkpoint, kNvlink);
  if (options.plan_link == "400g") print_link(checkpoint, kNetwork);
}

}  // namespace cmoe::jobs
