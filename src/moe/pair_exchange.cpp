#include "moe/pair_exchange.h"

namespace cmoe {

PairOrder::PairOrder(const DispatchHandle& handle) : handle_(handle) {
  int64_t begin = 0;
  for (size_t rank = 0; rank < handle.pairs_to.size(); ++rank) {
    begin_to_.push_back(begin);
    begin += handle.pairs_to[rank];
    served_from_.push_back(handle.served_begin[rank + 1] - handle.served_begin[rank]);
  }
}

}  // namespace cmoe
