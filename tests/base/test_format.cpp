#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/format.h"
#include "support/refusal.h"

namespace cmoe {
namespace {

TEST(Format, Counts) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1,000");
  EXPECT_EQ(format_count(-999), "-999");
  EXPECT_EQ(format_count(-1234567), "-1,234,567");
  EXPECT_EQ(format_count(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

TEST(Format, Bytes) {
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.0 KiB");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(format_bytes(int64_t{5} << 40), "5.0 TiB");
}

TEST(Format, Durations) {
  EXPECT_EQ(format_duration(0.0032), "3.2 ms");
  EXPECT_EQ(format_duration(0.9999), "1.0 s");
  EXPECT_EQ(format_duration(4.25), "4.2 s");
  EXPECT_EQ(format_duration(59.97), "1m 00s");
  EXPECT_EQ(format_duration(65), "1m 05s");
  EXPECT_EQ(format_duration(3599.6), "1h 00m");
  EXPECT_EQ(format_duration(2 * 3600 + 3 * 60 + 9), "2h 03m");
  EXPECT_EQ(format_duration(76 * 3600), "3d 04h");
  EXPECT_EQ(format_duration(-1), "?");
  EXPECT_EQ(format_duration(std::nan("")), "?");
  EXPECT_EQ(format_duration(1e300), "?");
}

TEST(Format, Numbers) {
  EXPECT_EQ(format_number(1234.4), "1,234");
  EXPECT_EQ(format_number(99.97), "100");
  EXPECT_EQ(format_number(45.25), "45.2");
  EXPECT_EQ(format_number(0.517), "0.52");
  EXPECT_EQ(format_number(0.00123), "0.0012");
  EXPECT_EQ(format_number(0), "0.00");
}

TEST(Format, TablesAlignNumbersToTheRight) {
  Table table({"layer", "name", "µs"});
  table.add_row({"0", "gate", "1.5"});
  table.add_row({"10", "up", ""});
  table.add_row({"100", "häh", "12"});
  EXPECT_EQ(table.text(),
            "layer  name   µs\n"
            "-----  ----  ---\n"
            "    0  gate  1.5\n"
            "   10  up\n"
            "  100  häh    12\n");
  EXPECT_EQ(refusal([&] { table.add_row({"1"}); }), "table: row of 1 cells; expected 3");
}

}  // namespace
}  // namespace cmoe
