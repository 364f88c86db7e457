#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "comm/communicator.h"
#include "support/world.h"

namespace cmoe {
namespace {

// The test's main owns the world; a group with one colour is the same ranks in the same order.
class CommunicatorTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { Environment::set_max_transfer_bytes(GetParam()); }
  void TearDown() override { Environment::set_max_transfer_bytes(int64_t{1} << 30); }
  Communicator& comm = test_world();
  int64_t rank = comm.rank(), size = comm.size();
};

// A value that tells where it was made and for whom.
int64_t mark(int64_t from, int64_t to, int64_t index) { return from * 1'000'000 + to * 10'000 + index; }

TEST_P(CommunicatorTest, BroadcastsFromEveryRoot) {
  for (int root = 0; root < comm.size(); ++root) {
    for (size_t count : {size_t{0}, size_t{1}, size_t{8}, size_t{9}, size_t{1000}}) {
      std::vector<int64_t> values(count, -1), expected(count);
      for (size_t i = 0; i < count; ++i) expected[i] = mark(root, 0, static_cast<int64_t>(i));
      if (rank == root) values = expected;
      comm.broadcast(std::span(values), root);
      EXPECT_EQ(values, expected);
    }
    EXPECT_EQ(comm.broadcast_string(rank == root ? "from " + std::to_string(root) : "x", root), "from " + std::to_string(root));
    EXPECT_EQ(comm.broadcast_string(rank == root ? "" : "x", root), "");
  }
}

TEST_P(CommunicatorTest, SumsAndMaximaAreExact) {
  std::vector<int64_t> sums(37), maxima(37);
  std::vector<double> reals(37);
  for (int64_t i = 0; i < 37; ++i) {
    // Beyond 2^53, where a sum in double would lose the last bits.
    sums[static_cast<size_t>(i)] = (int64_t{1} << 54) + rank + i;
    maxima[static_cast<size_t>(i)] = -((rank + i) % size) - 5;
    reals[static_cast<size_t>(i)] = -1.5 - static_cast<double>((rank + i) % size);
  }
  comm.all_reduce_sum(sums);
  comm.all_reduce_max(std::span(maxima));
  comm.all_reduce_max(std::span(reals));
  for (int64_t i = 0; i < 37; ++i) {
    EXPECT_EQ(sums[static_cast<size_t>(i)], size * ((int64_t{1} << 54) + i) + size * (size - 1) / 2);
    EXPECT_EQ(maxima[static_cast<size_t>(i)], -5);
    EXPECT_EQ(reals[static_cast<size_t>(i)], -1.5);
  }
  comm.all_reduce_sum({});
}

TEST_P(CommunicatorTest, GathersUnevenAndEmptyParts) {
  // Rank r gives length(r) values; one case where nobody has any.
  const std::vector<std::function<int64_t(int64_t)>> lengths = {[](int64_t) { return 0; }, [](int64_t r) { return r; },
                                                                [](int64_t r) { return r == 0 ? 100 : 0; },
                                                                [this](int64_t r) { return r == size - 1 ? 33 : 7; }};
  for (const auto& length : lengths) {
    std::vector<int64_t> mine, expected, counts, expected_counts;
    for (int64_t i = 0; i < length(rank); ++i) mine.push_back(mark(rank, 0, i));
    for (int64_t r = 0; r < size; ++r) {
      for (int64_t i = 0; i < length(r); ++i) expected.push_back(mark(r, 0, i));
      expected_counts.push_back(length(r));
    }
    EXPECT_EQ(comm.all_gather_v(std::span<const int64_t>(mine), &counts), expected);
    EXPECT_EQ(counts, expected_counts);
    EXPECT_EQ(comm.all_gather_v(std::span<const int64_t>(mine)), expected);
  }
  std::vector<std::string> expected;
  for (int64_t r = 0; r < size; ++r) expected.emplace_back(static_cast<size_t>(r * 50 % 101), static_cast<char>('a' + r));
  EXPECT_EQ(comm.all_gather_strings(expected[static_cast<size_t>(rank)]), expected);
}

TEST_P(CommunicatorTest, ExchangesOneValuePerRank) {
  std::vector<int64_t> values, expected;
  for (int64_t r = 0; r < size; ++r) {
    values.push_back(mark(rank, r, 3));
    expected.push_back(mark(r, rank, 3));
  }
  EXPECT_EQ(comm.all_to_all(values), expected);
}

TEST_P(CommunicatorTest, ExchangesSeveralValuesPerRank) {
  std::vector<int64_t> values, expected;
  for (int64_t r = 0; r < size; ++r) {
    for (int64_t i = 0; i < 3; ++i) {
      values.push_back(mark(rank, r, i));
      expected.push_back(mark(r, rank, i));
    }
  }
  EXPECT_EQ(comm.all_to_all(values), expected);
  EXPECT_TRUE(comm.all_to_all({}).empty());
}

TEST_P(CommunicatorTest, SeveralExchangesAreUnderWayAtOnce) {
  constexpr int kExchanges = 3;
  const auto length = [](int64_t from, int64_t to, int64_t round) { return (from * 5 + to * 11 + round * 3) % 13 * 9; };
  std::vector<std::vector<std::vector<std::byte>>> sent(kExchanges), received(kExchanges);
  std::vector<std::unique_ptr<Request>> requests;
  for (int64_t i = 0; i < kExchanges; ++i) {
    std::vector<MemoryBlock<const std::byte>> from;
    std::vector<MemoryBlock<std::byte>> to;
    for (int64_t r = 0; r < size; ++r) {
      auto& out = sent[static_cast<size_t>(i)].emplace_back(static_cast<size_t>(length(rank, r, i)),
                                                            static_cast<std::byte>(mark(rank, r, i)));
      auto& in = received[static_cast<size_t>(i)].emplace_back(static_cast<size_t>(length(r, rank, i)));
      from.push_back({out.data(), length(rank, r, i)});
      to.push_back({in.data(), length(r, rank, i)});
    }
    requests.push_back(comm.start_exchange(from, to));
  }
  while (!requests.back()->test()) {
  }
  for (auto& request : requests) request->wait();
  for (int64_t i = 0; i < kExchanges; ++i) {
    for (int64_t r = 0; r < size; ++r) {
      const std::vector<std::byte> expected(static_cast<size_t>(length(r, rank, i)), static_cast<std::byte>(mark(r, rank, i)));
      EXPECT_EQ(received[static_cast<size_t>(i)][static_cast<size_t>(r)], expected);
    }
  }
}

TEST_P(CommunicatorTest, ExchangesRowsUnevenlyAndBack) {
  // Rows are pairs of int64. Some pairs have no rows, and rank 0 receives nothing from odd ranks.
  const auto rows = [](int64_t from, int64_t to) { return to == 0 && from % 2 == 1 ? 0 : (from * 7 + to * 3) % 11 * 5; };
  std::vector<int64_t> send_counts, recv_counts, send, expected;
  for (int64_t r = 0; r < size; ++r) {
    send_counts.push_back(rows(rank, r));
    recv_counts.push_back(rows(r, rank));
    for (int64_t i = 0; i < 2 * rows(rank, r); ++i) send.push_back(mark(rank, r, i));
    for (int64_t i = 0; i < 2 * rows(r, rank); ++i) expected.push_back(mark(r, rank, i));
  }
  std::vector<int64_t> received(expected.size(), -1), back(send.size(), -1);
  comm.all_to_all_v(send.data(), send_counts, received.data(), recv_counts, 16);
  EXPECT_EQ(received, expected);
  comm.all_to_all_v(received.data(), recv_counts, back.data(), send_counts, 16);
  EXPECT_EQ(back, send);
}

TEST_P(CommunicatorTest, ExchangesNothing) {
  const std::vector<int64_t> none(static_cast<size_t>(size), 0);
  comm.all_to_all_v(nullptr, none, nullptr, none, 64);
}

TEST_P(CommunicatorTest, RowsLongerThanATransferArrive) {
  const int64_t row = 5000;
  const std::vector<int64_t> counts(static_cast<size_t>(size), 2);
  std::vector<char> send(static_cast<size_t>(2 * size * row)), received(send.size());
  for (size_t i = 0; i < send.size(); ++i) send[i] = static_cast<char>(i * 31 + static_cast<size_t>(rank));
  comm.all_to_all_v(send.data(), counts, received.data(), counts, row);
  for (int64_t r = 0; r < size; ++r) {
    for (int64_t i = 0; i < 2 * row; ++i) {
      const auto at_sender = static_cast<size_t>(rank * 2 * row + i);
      ASSERT_EQ(received[static_cast<size_t>(r * 2 * row + i)], static_cast<char>(at_sender * 31 + static_cast<size_t>(r)));
    }
  }
}

TEST_P(CommunicatorTest, SplitsIntoGroups) {
  const auto group = comm.split(static_cast<int>(rank % 2));
  EXPECT_EQ(group->rank(), rank / 2);
  EXPECT_EQ(group->size(), (size + 1 - rank % 2) / 2);
  std::vector<int64_t> sum{rank};
  group->all_reduce_sum(sum);
  int64_t expected = 0;
  for (int64_t r = rank % 2; r < size; r += 2) expected += r;
  EXPECT_EQ(sum[0], expected);
  const auto alone = comm.split(static_cast<int>(rank));
  EXPECT_EQ(alone->size(), 1);
  EXPECT_EQ(alone->all_gather_strings("me"), std::vector<std::string>{"me"});
  comm.barrier();
}

INSTANTIATE_TEST_SUITE_P(Limits, CommunicatorTest, ::testing::Values(int64_t{1} << 30, 64, 5),
                         [](const auto& limit) { return "bytes" + std::to_string(limit.param); });

TEST(Communicator, KnowsItsNode) {
  Communicator& comm = test_world();
  // All ranks of a test run on one machine.
  EXPECT_EQ(comm.node_size(), comm.size());
  EXPECT_EQ(comm.node_rank(), comm.rank());
  EXPECT_FALSE(host_name().empty());
  EXPECT_THAT(Environment::library_version(), ::testing::HasSubstr("MPI"));
}

TEST(Communicator, NamesTheRankThatSentLessThanAgreed) {
  Communicator& comm = test_world();
  if (comm.size() < 2) GTEST_SKIP() << "needs two ranks";
  // Rank 1 sends 3 bytes where rank 0 expects 8.
  std::vector<std::byte> memory(8);
  std::vector<MemoryBlock<const std::byte>> send(static_cast<size_t>(comm.size()));
  std::vector<MemoryBlock<std::byte>> receive(send.size());
  if (comm.rank() == 1) send[0] = {memory.data(), 3};
  if (comm.rank() == 0) receive[1] = {memory.data(), 8};
  const auto request = comm.start_exchange(send, receive);
  std::string message;
  try {
    request->wait();
  } catch (const Error& error) {
    message = error.what();
  }
  if (comm.rank() == 0) {
    EXPECT_THAT(message, ::testing::HasSubstr("rank 1 of the group sent 3 bytes; expected 8"));
  } else {
    EXPECT_EQ(message, "");
  }
  comm.barrier();
}

TEST(Communicator, RefusesWrongArguments) {
  Communicator& comm = test_world();
  const auto message = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  const std::vector<int64_t> many(static_cast<size_t>(comm.size()) + 1, 0), good(static_cast<size_t>(comm.size()), 0);
  std::vector<int64_t> negative = good;
  negative[0] = -1;
  const std::string where = fmt::format("[rank {}/{} {}]", comm.rank(), comm.size(), host_name());
  if (comm.size() > 1) {
    EXPECT_EQ(message([&] { comm.all_to_all(many); }),
              fmt::format("{} values has {} entries; expected the same number for each of {} ranks", where, many.size(),
                          comm.size()));
  }
  const std::vector<MemoryBlock<const std::byte>> nothing(good.size());
  std::vector<MemoryBlock<std::byte>> from_self(good.size());
  from_self[static_cast<size_t>(comm.rank())].bytes = 4;
  EXPECT_EQ(message([&] { comm.start_exchange(nothing, from_self); }),
            where + " exchange: 0 bytes sent to self, 4 expected from self");
  EXPECT_EQ(message([&] { comm.all_to_all_v(nullptr, good, nullptr, many, 1); }),
            fmt::format("{} recv_counts has {} entries; expected one per rank", where, many.size()));
  EXPECT_EQ(message([&] { comm.all_to_all_v(nullptr, negative, nullptr, good, 8); }),
            where + " send_counts: -1 rows of 8 bytes; expected >= 0");
  EXPECT_THAT(message([&] { comm.split(-1); }), ::testing::HasSubstr("color -1"));
  EXPECT_THAT(message([] { Environment::set_max_transfer_bytes(0); }), ::testing::HasSubstr("expected 1 to"));
  // A root that does not exist comes back from MPI itself: the call, its message, rank and host.
  char byte = 0;
  EXPECT_THAT(
      message([&] { comm.broadcast_bytes(&byte, 1, comm.size()); }),
      ::testing::AllOf(::testing::StartsWith(where), ::testing::HasSubstr("MPI_Bcast("), ::testing::HasSubstr("MPI_ERR_ROOT")));
}

}  // namespace
}  // namespace cmoe
