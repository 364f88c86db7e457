#include "moe/moe_layer.h"

#include <algorithm>

namespace cmoe {
namespace {

// Measures the stages of one call.
class StageClock {
 public:
  explicit StageClock(MoeCall& call) : call_(call) { call.begin = last_; }

  void end(MoeStage stage) {
    const auto now = std::chrono::steady_clock::now();
    call_.seconds[static_cast<size_t>(stage)] = std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  MoeCall& call_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

void MoeLayer::add_to(const Backend& backend, int64_t layer, const Tensor& input, Tensor& x, MoeObserver* observer) const {
  if (experts.empty()) {
    if (shared) gated_ffn(backend, *shared, input, x, /*accumulate=*/true);
    if (compensation_bias.size() > 0) backend.add_bias(compensation_bias, x);
    Routing none;
    none.expert_offset.assign(static_cast<size_t>(input.dim(0)) + 1, 0);
    if (observer) observer->on_routing(layer, none);
    return;
  }
  MoeCall call{.tokens = input.dim(0)};
  StageClock clock(call);
  const Routing routing = select_experts(router, router_scores(backend, router, input));
  if (observer) observer->on_routing(layer, routing);
  clock.end(MoeStage::route);

  const ExpertPlacement& placement = parallel->placement(layer);
  const auto under_way = parallel->dispatcher().dispatch_start(input, routing, placement);
  clock.end(MoeStage::send);
  add_shared(backend, input, x, *under_way);
  clock.end(MoeStage::shared);
  Dispatched arrived = under_way->wait();
  clock.end(MoeStage::receive);

  Tensor outputs(DType::f32, arrived.rows.shape());
  const auto local = placement.local_experts(parallel->rank());
  for (size_t i = 0; i < local.size(); ++i) {
    const int64_t begin = arrived.expert_offset[i], end = arrived.expert_offset[i + 1];
    Tensor out = outputs.rows(begin, end);
    gated_ffn(backend, experts[static_cast<size_t>(index_of(local[i]))], arrived.rows.rows(begin, end), out);
  }
  clock.end(MoeStage::experts);
  call.rows_served = arrived.rows.dim(0);
  call.report = parallel->dispatcher().combine(outputs, std::move(arrived.handle), x);
  clock.end(MoeStage::combine);
  if (observer) observer->on_call(layer, call);
}

// In pieces, because a transfer moves along only when it is asked how far it is.
void MoeLayer::add_shared(const Backend& backend, const Tensor& input, Tensor& x, PendingDispatch& under_way) const {
  constexpr int64_t kPiece = 256;  // rows: enough for the products to run at full speed
  const int64_t rows = input.dim(0), piece = under_way.test() ? std::max<int64_t>(rows, 1) : kPiece;
  for (int64_t begin = 0; begin < rows; begin += piece) {
    const int64_t end = std::min(begin + piece, rows);
    Tensor part = x.rows(begin, end);
    if (shared) gated_ffn(backend, *shared, input.rows(begin, end), part, /*accumulate=*/true);
    if (compensation_bias.size() > 0) backend.add_bias(compensation_bias, part);
    under_way.test();
  }
}

int64_t MoeLayer::bytes() const {
  int64_t bytes = shared ? shared->bytes() : 0;
  for (const GatedFfn& expert : experts) bytes += expert.bytes();
  return bytes;
}

}  // namespace cmoe
