#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "moe/placement.h"
#include "moe/routing.h"
#include "moe/wire_model.h"
#include "tensor/tensor.h"

namespace cmoe {

enum class DispatcherKind : uint8_t { automatic, all_to_all, all_gather };

/// From "auto", "all_to_all" or "all_gather". @throws Error on another name.
DispatcherKind dispatcher_kind(std::string_view name);

struct DispatcherOptions {
  DispatcherKind kind = DispatcherKind::automatic;
  /// f32: the layer's result does not depend on placement, transport or number of ranks, to the bit. bf16: rows and partial
  /// results are rounded to bfloat16 (relative error at most 2^-8 each), also those that stay on their rank, so that this
  /// result does not depend on them either.
  DType wire = DType::f32;
};

/// What one dispatch and combine did on this rank.
struct ExchangeReport {
  Transport transport = Transport::all_to_all;  ///< the same on all ranks
  WireBytes sent;
  double dispatch_seconds = 0;  ///< planning, packing and grouping rows
  double combine_seconds = 0;   ///< packing and adding partial results
  double wait_seconds = 0;      ///< for other ranks: sizes, rows, partial results
};

/// What combine needs to know of its dispatch. Opaque to callers but for the report.
struct DispatchHandle {
  Routing routing;  ///< of this rank's tokens
  int64_t hidden_size = 0;
  std::vector<int32_t> rank_of_pair;   ///< [pairs] the rank that serves each (token, expert) of `routing`
  std::vector<int64_t> turn_of_pair;   ///< [pairs] its number among the pairs that rank serves for this one
  std::vector<int64_t> pairs_to;       ///< [ranks] partial results that come back from each rank
  std::vector<int64_t> served_begin;   ///< [ranks + 1] begin of each rank's pairs in row_of_served
  std::vector<int64_t> row_of_served;  ///< [pairs served here] row in Dispatched::rows, in order of (home rank, token, expert)
  ExchangeReport report;
};

struct Dispatched {
  /// [n, d] f32, grouped by local expert ascending; inside one expert by (home rank, token). With f32 rows on one rank the
  /// caller's rows, copied once.
  Tensor rows;
  std::vector<int64_t> expert_offset;  ///< [local experts + 1] rows of LocalExpert i: [expert_offset[i], expert_offset[i + 1])
  DispatchHandle handle;
};

/// Rows under way to their experts.
class PendingDispatch {
 public:
  virtual ~PendingDispatch() = default;
  /// Moves the transfer along; call between pieces of other work. True when wait() will not block.
  virtual bool test() = 0;
  /// Once. The other ranks' rows, grouped.
  virtual Dispatched wait() = 0;
};

/// Partial results on their way home.
class PendingCombine {
 public:
  virtual ~PendingCombine() = default;
  virtual bool test() = 0;
  /// Once. y[t] += weight * partial for each expert of token t, ascending, in f32. @param y [T, d] f32, added to.
  virtual ExchangeReport wait(Tensor& y) = 0;
};

/// Sends tokens to the ranks of their experts and brings the results back: route -> **dispatch** -> experts -> **combine**.
///
/// Collective: every rank of the group calls dispatch_start, wait, combine_start, wait in the same order, whatever its tokens
/// and experts; none is ordinary, a group of one as well. Several may be under way when all ranks start them in the same order.
/// Nothing is dropped; there is no capacity.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;

  /// @param x           [T, d] f32, this rank's tokens; unchanged until wait() returned
  /// @param routing     of these T tokens; experts ascending, without repeats
  /// @param placement   equal on all ranks, over as many ranks as the group has; must outlive wait()
  /// @throws Error      on shapes and ids that do not fit, and when ranks differ in d, wire type or placement
  virtual std::unique_ptr<PendingDispatch> dispatch_start(const Tensor& x, const Routing& routing,
                                                          const ExpertPlacement& placement) = 0;
  /// @param outputs   [n, d] f32: row i is the expert's result for Dispatched::rows row i; unchanged until wait() returned
  virtual std::unique_ptr<PendingCombine> combine_start(const Tensor& outputs, DispatchHandle handle) = 0;

  Dispatched dispatch(const Tensor& x, const Routing& routing, const ExpertPlacement& placement) {
    return dispatch_start(x, routing, placement)->wait();
  }
  ExchangeReport combine(const Tensor& outputs, DispatchHandle handle, Tensor& y) {
    return combine_start(outputs, std::move(handle))->wait(y);
  }
};

/// The dispatcher over host memory. `group` must outlive it. One serves all layers of a model and keeps their buffers.
std::unique_ptr<Dispatcher> make_dispatcher(Communicator& group, const DispatcherOptions& options);

}  // namespace cmoe
