#include "moe/moe_layer.h"

#include <algorithm>

namespace cmoe {

// Tokens that travel together, from their routing to their results.
struct MoeLayer::Piece {
  Tensor input, x;  // rows of the call's
  MoeCall call;
  std::unique_ptr<PendingDispatch> rows;
  Tensor outputs;  // of this rank's experts, until the results have left
  std::unique_ptr<PendingCombine> results;

  // Measures a stage while it lives; a stage in two parts begins with the first.
  class Clock {
   public:
    Clock(Piece& piece, MoeStage stage) : stage_(piece.call.stages[static_cast<size_t>(stage)]), begin_(now()) {
      if (stage_.seconds == 0) stage_.begin = begin_;
    }
    ~Clock() { stage_.seconds += std::chrono::duration<double>(now() - begin_).count(); }

   private:
    static std::chrono::steady_clock::time_point now() { return std::chrono::steady_clock::now(); }
    MoeCall::Stage& stage_;
    std::chrono::steady_clock::time_point begin_;
  };
};

void MoeLayer::add_to(const Backend& backend, int64_t layer, const Tensor& input, Tensor& x, MoeObserver* observer) const {
  if (experts.empty()) {
    if (shared) gated_ffn(backend, *shared, input, x, /*accumulate=*/true);
    if (compensation_bias.size() > 0) backend.add_bias(compensation_bias, x);
    Routing none;
    none.expert_offset.assign(static_cast<size_t>(input.dim(0)) + 1, 0);
    if (observer) observer->on_routing(layer, none);
    return;
  }
  std::vector<Piece> pieces(static_cast<size_t>(parallel->chunks()));
  const int64_t tokens = input.dim(0), chunks = parallel->chunks();
  for (int64_t i = 0; i < chunks; ++i) {
    Piece& piece = pieces[static_cast<size_t>(i)];
    piece.input = input.rows(tokens * i / chunks, tokens * (i + 1) / chunks);
    piece.x = x.rows(tokens * i / chunks, tokens * (i + 1) / chunks);
    send(backend, layer, piece, observer);
  }
  for (Piece& piece : pieces) add_shared(backend, piece);
  for (Piece& piece : pieces) run_experts(backend, layer, piece);
  for (Piece& piece : pieces) {
    {
      const Piece::Clock clock(piece, MoeStage::combine);
      piece.call.report = piece.results->wait(piece.x);
    }
    if (observer) observer->on_call(layer, piece.call);
  }
}

void MoeLayer::send(const Backend& backend, int64_t layer, Piece& piece, MoeObserver* observer) const {
  Routing routing;
  {
    const Piece::Clock clock(piece, MoeStage::route);
    routing = select_experts(router, router_scores(backend, router, piece.input));
    if (observer) observer->on_routing(layer, routing);
  }
  const Piece::Clock clock(piece, MoeStage::send);
  piece.call.tokens = piece.input.dim(0);
  piece.rows = parallel->dispatcher().dispatch_start(piece.input, routing, parallel->placement(layer));
}

// In parts, because a transfer moves along only when it is asked how far it is.
void MoeLayer::add_shared(const Backend& backend, Piece& piece) const {
  const Piece::Clock clock(piece, MoeStage::shared);
  constexpr int64_t kPart = 256;  // rows: enough for the products to run at full speed
  const int64_t rows = piece.input.dim(0), size = piece.rows->test() ? std::max<int64_t>(rows, 1) : kPart;
  for (int64_t begin = 0; begin < rows; begin += size) {
    const int64_t end = std::min(begin + size, rows);
    Tensor part = piece.x.rows(begin, end);
    if (shared) gated_ffn(backend, *shared, piece.input.rows(begin, end), part, /*accumulate=*/true);
    if (compensation_bias.size() > 0) backend.add_bias(compensation_bias, part);
    piece.rows->test();
  }
}

void MoeLayer::run_experts(const Backend& backend, int64_t layer, Piece& piece) const {
  Dispatched arrived;
  {
    const Piece::Clock clock(piece, MoeStage::receive);
    arrived = piece.rows->wait();
  }
  piece.outputs = Tensor(DType::f32, arrived.rows.shape());
  {
    const Piece::Clock clock(piece, MoeStage::experts);
    const auto local = parallel->placement(layer).local_experts(parallel->rank());
    for (size_t i = 0; i < local.size(); ++i) {
      const int64_t begin = arrived.expert_offset[i], end = arrived.expert_offset[i + 1];
      Tensor out = piece.outputs.rows(begin, end);
      gated_ffn(backend, experts[static_cast<size_t>(index_of(local[i]))], arrived.rows.rows(begin, end), out);
    }
    piece.call.rows_served = arrived.rows.dim(0);
  }
  const Piece::Clock clock(piece, MoeStage::combine);
  piece.results = parallel->dispatcher().combine_start(piece.outputs, std::move(arrived.handle));
}

int64_t MoeLayer::bytes() const {
  int64_t bytes = shared ? shared->bytes() : 0;
  for (const GatedFfn& expert : experts) bytes += expert.bytes();
  return bytes;
}

}  // namespace cmoe
