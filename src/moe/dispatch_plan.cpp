#include "moe/dispatch_plan.h"

#include <cstring>

#include "base/error.h"
#include "base/parallel.h"

namespace cmoe {

namespace {

constexpr int64_t kRowGrain = 16;  // rows per task: some 100 KiB

void put(std::byte*& at, int32_t value) {
  std::memcpy(at, &value, 4);
  at += 4;
}

int32_t get(const std::byte*& at) {
  int32_t value;
  std::memcpy(&value, at, 4);
  at += 4;
  return value;
}

}  // namespace

void to_wire(const float* row, std::byte* out, const WireFormat& format) {
  if (format.dtype == DType::f32) {
    std::memcpy(out, row, static_cast<size_t>(format.row_bytes()));
    return;
  }
  auto* rounded = reinterpret_cast<bf16*>(out);
  for (int64_t i = 0; i < format.hidden_size; ++i) rounded[i] = to_bf16(row[i]);
}

SendPlan plan_send(const Routing& routing, const ExpertPlacement& placement, int home_rank) {
  const size_t pairs = routing.expert_idx.size();
  CMOE_CHECK(!routing.expert_offset.empty() && routing.expert_offset.front() == 0 &&
                 static_cast<size_t>(routing.expert_offset.back()) == pairs && routing.weight.size() == pairs,
             "dispatch: the routing has {} expert ids, {} weights and offsets to {}; expected equal numbers", pairs,
             routing.weight.size(), routing.expert_offset.empty() ? -1 : routing.expert_offset.back());
  const auto ranks = static_cast<size_t>(placement.ranks());
  SendPlan plan{std::vector<int64_t>(ranks, 0), std::vector<int64_t>(ranks, 0), std::vector<int32_t>(pairs),
                std::vector<int64_t>(pairs)};
  std::vector<int64_t> last_token(ranks, -1);
  size_t p = 0;
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    int32_t previous = -1;
    for (int32_t e : routing.experts(t)) {
      CMOE_CHECK(e > previous && e < placement.num_experts(),
                 "dispatch: token {} takes expert {} after {}; expected ascending ids from 0 to {}", t, e, previous,
                 placement.num_experts() - 1);
      previous = e;
      const int rank = placement.rank_for(GlobalExpert{e}, home_rank);
      const auto r = static_cast<size_t>(rank);
      plan.rank_of_pair[p] = rank;
      plan.turn_of_pair[p++] = plan.pairs_to[r]++;
      if (last_token[r] != t) ++plan.rows_to[r];
      last_token[r] = t;
    }
  }
  return plan;
}

void pack_per_rank(const Tensor& x, const Routing& routing, const SendPlan& plan, int home_rank, const WireFormat& format,
                   std::span<std::byte* const> block) {
  struct Row {
    int64_t token;
    std::byte* to;
  };
  std::vector<Row> rows;
  std::vector<std::byte*> id_at(block.begin(), block.end()), row_at(block.size()), length_at(block.size());
  std::vector<int32_t> length(block.size(), 0);
  std::vector<int32_t> of_token;  // ranks that get the token
  for (size_t r = 0; r < block.size(); ++r) row_at[r] = block[r] + BlockSize{plan.rows_to[r], plan.pairs_to[r]}.id_bytes();
  size_t p = 0;
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    of_token.clear();
    for (int32_t e : routing.experts(t)) {
      const int32_t rank = plan.rank_of_pair[p++];
      if (rank == home_rank) continue;
      const auto r = static_cast<size_t>(rank);
      if (length[r]++ == 0) {
        of_token.push_back(rank);
        length_at[r] = id_at[r];
        id_at[r] += 4;
        rows.push_back({t, row_at[r]});
        row_at[r] += format.row_bytes();
      }
      put(id_at[r], e);
    }
    for (int32_t rank : of_token) {
      put(length_at[static_cast<size_t>(rank)], length[static_cast<size_t>(rank)]);
      length[static_cast<size_t>(rank)] = 0;
    }
  }
  parallel_for(static_cast<int64_t>(rows.size()), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Row& row = rows[static_cast<size_t>(i)];
      to_wire(x.row<float>(row.token), row.to, format);
    }
  });
}

void pack_all(const Tensor& x, const Routing& routing, const WireFormat& format, std::byte* block) {
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    const auto experts = routing.experts(t);
    put(block, static_cast<int32_t>(experts.size()));
    for (int32_t e : experts) put(block, e);
  }
  parallel_for(routing.tokens(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) to_wire(x.row<float>(t), block + t * format.row_bytes(), format);
  });
}

void Arrivals::add_own(const Tensor& x, const Routing& routing, const SendPlan& plan) {
  own_begin_ = count();
  for (int64_t t = 0; t < routing.tokens(); ++t) {
    for (int32_t p = routing.expert_offset[static_cast<size_t>(t)]; p < routing.expert_offset[static_cast<size_t>(t) + 1];
         ++p) {
      if (plan.rank_of_pair[static_cast<size_t>(p)] != rank_) continue;
      expert_.push_back(index_of(*placement_.find_local(GlobalExpert{routing.expert_idx[static_cast<size_t>(p)]}, rank_)));
      row_.push_back(reinterpret_cast<const std::byte*>(x.row<float>(t)));
    }
  }
  own_end_ = count();
  served_begin_.push_back(count());
}

void Arrivals::add_block(int home, const std::byte* block, const BlockSize& size, int64_t expected_pairs) {
  const std::byte* id = block;
  const std::byte* row = block + size.id_bytes();
  const int64_t before = count();
  int64_t listed = 0;
  for (int64_t i = 0; i < size.rows; ++i, row += format_.row_bytes()) {
    const int32_t length = get(id);
    listed += length;
    if (length < 0 || listed > size.pairs) {
      fail_internal("dispatch: rank {} sent a list of {} experts for its row {} of {}; expected {} in all", home, length, i,
                    size.rows, size.pairs);
    }
    for (int32_t j = 0; j < length; ++j) {
      const int32_t e = get(id);
      if (e < 0 || e >= placement_.num_experts()) {
        fail_internal("dispatch: rank {} sent expert id {}; expected 0 to {}", home, e, placement_.num_experts() - 1);
      }
      if (placement_.rank_for(GlobalExpert{e}, home) != rank_) continue;
      expert_.push_back(index_of(*placement_.find_local(GlobalExpert{e}, rank_)));
      row_.push_back(row);
    }
  }
  if (listed != size.pairs || count() - before != expected_pairs) {
    fail_internal("dispatch: rank {} sent {} expert ids, {} of them for rank {}; expected {} and {}", home, listed,
                  count() - before, rank_, size.pairs, expected_pairs);
  }
  served_begin_.push_back(count());
}

void Arrivals::group(Tensor& rows, std::vector<int64_t>& expert_offset, std::vector<int64_t>& row_of_served) const {
  expert_offset.assign(placement_.local_experts(rank_).size() + 1, 0);
  for (int32_t e : expert_) ++expert_offset[static_cast<size_t>(e) + 1];
  for (size_t e = 1; e < expert_offset.size(); ++e) expert_offset[e] += expert_offset[e - 1];
  std::vector<int64_t> next(expert_offset.begin(), expert_offset.end() - 1);
  row_of_served.resize(expert_.size());
  for (size_t q = 0; q < expert_.size(); ++q) row_of_served[q] = next[static_cast<size_t>(expert_[q])]++;

  const int64_t d = format_.hidden_size;
  parallel_for(count(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) {
      float* out = rows.row<float>(row_of_served[static_cast<size_t>(q)]);
      const std::byte* in = row_[static_cast<size_t>(q)];
      if (format_.dtype == DType::f32) {
        std::memcpy(out, in, static_cast<size_t>(d) * sizeof(float));
      } else if (q >= own_begin_ && q < own_end_) {
        const auto* exact = reinterpret_cast<const float*>(in);
        for (int64_t i = 0; i < d; ++i) out[i] = to_f32(to_bf16(exact[i]));
      } else {
        const auto* rounded = reinterpret_cast<const bf16*>(in);
        for (int64_t i = 0; i < d; ++i) out[i] = to_f32(rounded[i]);
      }
    }
  });
}

}  // namespace cmoe
