#pragma once

#include <span>
#include <vector>

#include "comm/communicator.h"
#include "moe/dispatcher.h"

namespace cmoe {

/// Where the pairs of a dispatch stand on the wire: at home by serving rank, at the experts by home rank, then in turn.
class PairOrder {
 public:
  explicit PairOrder(const DispatchHandle& handle);

  size_t home_place(size_t pair) const {
    return static_cast<size_t>(begin_to_[static_cast<size_t>(handle_.rank_of_pair[pair])] + handle_.turn_of_pair[pair]);
  }
  size_t row_of(size_t served) const { return static_cast<size_t>(handle_.row_of_served[served]); }
  size_t pairs() const { return handle_.rank_of_pair.size(); }
  size_t served() const { return handle_.row_of_served.size(); }
  std::span<const int64_t> pairs_to() const { return handle_.pairs_to; }
  std::span<const int64_t> served_from() const { return served_from_; }

 private:
  const DispatchHandle& handle_;
  std::vector<int64_t> begin_to_, served_from_;
};

/// Small values of (token, expert) pairs go where the pairs' rows went. Collective over the group of the dispatch; T is copied
/// as bytes.
/// @param values  [pairs of handle.routing]. @return [pairs served here], in the order of Dispatched::rows.
template <class T>
std::vector<T> send_with_rows(Communicator& group, const DispatchHandle& handle, std::span<const T> values) {
  const PairOrder order(handle);
  std::vector<T> sent(order.pairs()), received(order.served()), rows(order.served());
  for (size_t pair = 0; pair < sent.size(); ++pair) sent[order.home_place(pair)] = values[pair];
  group.all_to_all_v(sent.data(), order.pairs_to(), received.data(), order.served_from(), sizeof(T));
  for (size_t served = 0; served < rows.size(); ++served) rows[order.row_of(served)] = received[served];
  return rows;
}

/// The way back.
/// @param values  [pairs served here], in the order of Dispatched::rows. @return [pairs of handle.routing].
template <class T>
std::vector<T> send_home(Communicator& group, const DispatchHandle& handle, std::span<const T> values) {
  const PairOrder order(handle);
  std::vector<T> sent(order.served()), received(order.pairs()), pairs(order.pairs());
  for (size_t served = 0; served < sent.size(); ++served) sent[served] = values[order.row_of(served)];
  group.all_to_all_v(sent.data(), order.served_from(), received.data(), order.pairs_to(), sizeof(T));
  for (size_t pair = 0; pair < pairs.size(); ++pair) pairs[pair] = received[order.home_place(pair)];
  return pairs;
}

}  // namespace cmoe
