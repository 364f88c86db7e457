#include "moe/dispatcher.h"

#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "moe/buffer_pool.h"
#include "moe/combine.h"
#include "moe/dispatch_plan.h"

namespace cmoe {

namespace {

constexpr int64_t kTokenGrain = 16;

// Adds the time since `start` to `total` and restarts.
class Lap {
 public:
  void add_to(double& total) {
    const auto now = std::chrono::steady_clock::now();
    total += std::chrono::duration<double>(now - start_).count();
    start_ = now;
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Buffers of one message to each rank (or from each), laid out in rank order in one piece of memory.
struct Blocks {
  std::shared_ptr<std::byte> memory;
  std::vector<int64_t> begin{0};  // [ranks + 1]

  void add(int64_t bytes) { begin.push_back(begin.back() + bytes); }
  std::byte* data(size_t rank) const { return memory.get() + begin[rank]; }
  int64_t bytes(size_t rank) const { return begin[rank + 1] - begin[rank]; }

  template <class Byte>
  std::vector<MemoryBlock<Byte>> views() const {
    std::vector<MemoryBlock<Byte>> result;
    for (size_t r = 0; r + 1 < begin.size(); ++r) result.push_back({data(r), bytes(r)});
    return result;
  }
};

std::unique_ptr<Request> start(Communicator& group, const Blocks& send, const Blocks& receive) {
  auto request = group.start_exchange(send.views<const std::byte>(), receive.views<std::byte>());
  request->hold(send.memory);
  request->hold(receive.memory);
  return request;
}

class MpiPendingDispatch final : public PendingDispatch {
 public:
  MpiPendingDispatch(Communicator& group, BufferPool& pool, const DispatcherOptions& options, const Tensor& x,
                     const Routing& routing, const ExpertPlacement& placement)
      : group_(group), pool_(pool), x_(x), placement_(placement), format_{x.dim(1), options.wire} {
    Lap lap;
    const int me = group_.rank();
    const auto ranks = static_cast<size_t>(group_.size());
    plan_ = plan_send(routing, placement, me);
    handle_.routing = routing;
    handle_.hidden_size = format_.hidden_size;
    lap.add_to(handle_.report.dispatch_seconds);
    exchange_counts(options);
    lap.add_to(handle_.report.wait_seconds);

    choose(options.kind);
    const bool to_all = handle_.report.transport == Transport::all_gather;
    Blocks send, receive;
    for (size_t r = 0; r < ranks; ++r) {
      const Counts& from = counts_[r];
      sizes_.push_back(to_all ? BlockSize{from.tokens, from.all_pairs} : BlockSize{from.rows, from.pairs});
      if (r == static_cast<size_t>(me)) sizes_.back() = {};
      receive.add(sizes_.back().bytes(format_));
    }
    if (to_all) {
      const BlockSize block{routing.tokens(), static_cast<int64_t>(routing.expert_idx.size())};
      if (ranks > 1) send.memory = pool_.take(block.bytes(format_));
      if (send.memory) pack_all(x, routing, format_, send.memory.get());
      count_sent(block, static_cast<int64_t>(ranks) - 1);
      receive.memory = pool_.take(receive.begin.back());
      // The same block for every other rank.
      std::vector<MemoryBlock<const std::byte>> views(ranks, {send.memory.get(), block.bytes(format_)});
      views[static_cast<size_t>(me)] = {};
      request_ = group_.start_exchange(views, receive.views<std::byte>());
      request_->hold(send.memory);
      request_->hold(receive.memory);
    } else {
      std::vector<std::byte*> block;
      for (size_t r = 0; r < ranks; ++r) {
        const BlockSize size = r == static_cast<size_t>(me) ? BlockSize{} : BlockSize{plan_.rows_to[r], plan_.pairs_to[r]};
        send.add(size.bytes(format_));
        count_sent(size, 1);
      }
      send.memory = pool_.take(send.begin.back());
      for (size_t r = 0; r < ranks; ++r) block.push_back(send.data(r));
      pack_per_rank(x, routing, plan_, me, format_, block);
      receive.memory = pool_.take(receive.begin.back());
      request_ = start(group_, send, receive);
    }
    receive_ = std::move(receive);
    lap.add_to(handle_.report.dispatch_seconds);
  }

  bool test() override { return request_->test(); }

  Dispatched wait() override {
    Lap lap;
    request_->wait();
    lap.add_to(handle_.report.wait_seconds);
    const auto me = static_cast<size_t>(group_.rank());
    Arrivals arrivals(placement_, group_.rank(), format_);
    for (size_t r = 0; r < sizes_.size(); ++r) {
      if (r == me) {
        arrivals.add_own(x_, handle_.routing, plan_);
      } else {
        arrivals.add_block(static_cast<int>(r), receive_.data(r), sizes_[r], counts_[r].pairs);
      }
    }
    Dispatched result;
    result.rows = pool_.take(DType::f32, {arrivals.count(), format_.hidden_size});
    handle_.rank_of_pair = std::move(plan_.rank_of_pair);
    handle_.turn_of_pair = std::move(plan_.turn_of_pair);
    handle_.pairs_to = std::move(plan_.pairs_to);
    handle_.served_begin = arrivals.served_begin();
    arrivals.group(result.rows, result.expert_offset, handle_.row_of_served);
    lap.add_to(handle_.report.dispatch_seconds);
    result.handle = std::move(handle_);
    return result;
  }

 private:
  int64_t check_value(const DispatcherOptions& options) const {
    const auto shape = static_cast<uint64_t>(format_.hidden_size) * 16 + static_cast<uint64_t>(options.wire) * 4 +
                       static_cast<uint64_t>(options.kind);
    return static_cast<int64_t>(placement_.fingerprint() ^ (shape * 0x9e3779b97f4a7c15ull));
  }

  void exchange_counts(const DispatcherOptions& options) {
    const auto me = static_cast<size_t>(group_.rank());
    Counts common{
        check_value(options), 0, 0, handle_.routing.tokens(), static_cast<int64_t>(handle_.routing.expert_idx.size()), 0, 0};
    for (size_t r = 0; r < plan_.rows_to.size(); ++r) {
      if (r != me) common.remote_rows += plan_.rows_to[r], common.remote_pairs += plan_.pairs_to[r];
    }
    std::vector<Counts> mine(plan_.rows_to.size(), common);
    for (size_t r = 0; r < mine.size(); ++r) mine[r].rows = plan_.rows_to[r], mine[r].pairs = plan_.pairs_to[r];
    const auto* values = reinterpret_cast<const int64_t*>(mine.data());
    const std::vector<int64_t> received = group_.all_to_all({values, mine.size() * kCountsPerPeer});
    counts_.resize(mine.size());
    std::memcpy(counts_.data(), received.data(), received.size() * sizeof(int64_t));
    handle_.report.sent.counts = static_cast<int64_t>((mine.size() - 1) * sizeof(Counts));
    for (size_t r = 0; r < counts_.size(); ++r) {
      CMOE_CHECK(
          counts_[r].check == common.check,
          "dispatch: rank {} and rank {} differ in hidden_size ({} here), wire type ({} here), dispatcher or expert placement; "
          "expected the same on all ranks; use one configuration and one model folder",
          group_.rank(), r, format_.hidden_size, name_of(options.wire));
    }
  }

  // The same decision on all ranks: it depends on sums over all of them.
  void choose(DispatcherKind kind) {
    Transport& transport = handle_.report.transport;
    transport = kind == DispatcherKind::all_gather ? Transport::all_gather : Transport::all_to_all;
    if (kind != DispatcherKind::automatic) return;
    int64_t per_rank = 0, to_all = 0;
    for (const Counts& c : counts_) {
      per_rank += BlockSize{c.remote_rows, c.remote_pairs}.bytes(format_);
      to_all += (static_cast<int64_t>(counts_.size()) - 1) * BlockSize{c.tokens, c.all_pairs}.bytes(format_);
    }
    transport = choose_transport(per_rank, to_all);
  }

  void count_sent(const BlockSize& block, int64_t times) {
    handle_.report.sent.ids += times * block.id_bytes();
    handle_.report.sent.rows += times * block.rows * format_.row_bytes();
  }

  Communicator& group_;
  BufferPool& pool_;
  Tensor x_;
  const ExpertPlacement& placement_;
  WireFormat format_;
  SendPlan plan_;
  std::vector<Counts> counts_;    // [ranks] what each rank announced
  std::vector<BlockSize> sizes_;  // [ranks] of the blocks received
  Blocks receive_;
  DispatchHandle handle_;
  std::unique_ptr<Request> request_;
};

class MpiPendingCombine final : public PendingCombine {
 public:
  MpiPendingCombine(Communicator& group, BufferPool& pool, DType wire, const Tensor& outputs, DispatchHandle handle)
      : me_(static_cast<size_t>(group.rank())),
        outputs_(outputs),
        handle_(std::move(handle)),
        format_{handle_.hidden_size, wire} {
    Lap lap;
    Blocks send;
    const auto ranks = handle_.pairs_to.size();
    for (size_t r = 0; r < ranks; ++r) {
      const int64_t served = handle_.served_begin[r + 1] - handle_.served_begin[r];
      send.add(r == me_ ? 0 : served * format_.row_bytes());
      receive_.add(r == me_ ? 0 : handle_.pairs_to[r] * format_.row_bytes());
    }
    send.memory = pool.take(send.begin.back());
    receive_.memory = pool.take(receive_.begin.back());
    handle_.report.sent.partials = send.begin.back();
    for (size_t r = 0; r < ranks; ++r) {
      if (r != me_) pack(handle_.served_begin[r], handle_.served_begin[r + 1], send.data(r));
    }
    request_ = start(group, send, receive_);
    lap.add_to(handle_.report.combine_seconds);
  }

  bool test() override { return request_->test(); }

  ExchangeReport wait(Tensor& y) override {
    CMOE_CHECK(y.dtype() == DType::f32 && y.shape() == Shape({handle_.routing.tokens(), format_.hidden_size}),
               "combine: y is {} {}; expected f32 {} (tokens, hidden_size)", name_of(y.dtype()), to_string(y.shape()),
               to_string({handle_.routing.tokens(), format_.hidden_size}));
    Lap lap;
    request_->wait();
    lap.add_to(handle_.report.wait_seconds);
    parallel_for(handle_.routing.tokens(), kTokenGrain, [&](int64_t begin, int64_t end) {
      std::vector<bf16> rounded(static_cast<size_t>(format_.dtype == DType::bf16 ? format_.hidden_size : 0));
      for (int64_t t = begin; t < end; ++t) add_token(t, y.row<float>(t), rounded);
    });
    lap.add_to(handle_.report.combine_seconds);
    return handle_.report;
  }

 private:
  void pack(int64_t begin, int64_t end, std::byte* block) const {
    parallel_for(end - begin, kTokenGrain, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t row = handle_.row_of_served[static_cast<size_t>(begin + i)];
        to_wire(outputs_.row<float>(row), block + i * format_.row_bytes(), format_);
      }
    });
  }

  // y[t] += Σ_e weight(t, e) * partial(t, e), e ascending: the order of the pairs of a token.
  void add_token(int64_t t, float* y, std::vector<bf16>& rounded) const {
    const Routing& routing = handle_.routing;
    const auto end = static_cast<size_t>(routing.expert_offset[static_cast<size_t>(t) + 1]);
    for (auto p = static_cast<size_t>(routing.expert_offset[static_cast<size_t>(t)]); p < end; ++p) {
      const auto rank = static_cast<size_t>(handle_.rank_of_pair[p]);
      const int64_t turn = handle_.turn_of_pair[p];
      const std::byte* partial = receive_.data(rank) + (rank == me_ ? 0 : turn * format_.row_bytes());
      if (rank == me_) {
        const auto* own = outputs_.row<float>(handle_.row_of_served[static_cast<size_t>(handle_.served_begin[me_] + turn)]);
        partial = reinterpret_cast<const std::byte*>(own);
        if (format_.dtype == DType::bf16) {
          to_wire(own, reinterpret_cast<std::byte*>(rounded.data()), format_);
          partial = reinterpret_cast<const std::byte*>(rounded.data());
        }
      }
      if (format_.dtype == DType::bf16) {
        add_partial(y, reinterpret_cast<const bf16*>(partial), routing.weight[p], format_.hidden_size);
      } else {
        add_partial(y, reinterpret_cast<const float*>(partial), routing.weight[p], format_.hidden_size);
      }
    }
  }

  size_t me_;
  Tensor outputs_;
  DispatchHandle handle_;
  WireFormat format_;
  Blocks receive_;
  std::unique_ptr<Request> request_;
};

class MpiDispatcher final : public Dispatcher {
 public:
  MpiDispatcher(Communicator& group, const DispatcherOptions& options) : group_(group), options_(options) {
    CMOE_CHECK(options.wire == DType::f32 || options.wire == DType::bf16, "wire_dtype: {}; expected f32 or bf16",
               name_of(options.wire));
  }

  std::unique_ptr<PendingDispatch> dispatch_start(const Tensor& x, const Routing& routing,
                                                  const ExpertPlacement& placement) override {
    CMOE_CHECK(placement.ranks() == group_.size(),
               "dispatch: the expert placement is for {} ranks; expected {}, the ranks of the group", placement.ranks(),
               group_.size());
    CMOE_CHECK(x.dtype() == DType::f32 && x.shape().size() == 2 && x.dim(0) == routing.tokens(),
               "dispatch: x is {} {}; expected f32 [{}, hidden_size] for the tokens of the routing", name_of(x.dtype()),
               to_string(x.shape()), routing.tokens());
    return std::make_unique<MpiPendingDispatch>(group_, pool_, options_, x, routing, placement);
  }

  std::unique_ptr<PendingCombine> combine_start(const Tensor& outputs, DispatchHandle handle) override {
    const Shape expected{static_cast<int64_t>(handle.row_of_served.size()), handle.hidden_size};
    CMOE_CHECK(outputs.dtype() == DType::f32 && outputs.shape() == expected,
               "combine: outputs is {} {}; expected f32 {}, as the dispatched rows", name_of(outputs.dtype()),
               to_string(outputs.shape()), to_string(expected));
    return std::make_unique<MpiPendingCombine>(group_, pool_, options_.wire, outputs, std::move(handle));
  }

 private:
  Communicator& group_;
  DispatcherOptions options_;
  BufferPool pool_;
};

}  // namespace

DispatcherKind dispatcher_kind(std::string_view name) {
  if (name == "auto") return DispatcherKind::automatic;
  if (name == "all_to_all") return DispatcherKind::all_to_all;
  if (name == "all_gather") return DispatcherKind::all_gather;
  fail("dispatcher: '{}'; expected auto, all_to_all or all_gather", name);
}

std::unique_ptr<Dispatcher> make_dispatcher(Communicator& group, const DispatcherOptions& options) {
  return std::make_unique<MpiDispatcher>(group, options);
}

}  // namespace cmoe
