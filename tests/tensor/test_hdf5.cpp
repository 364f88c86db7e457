#include <gtest/gtest.h>

#include <numeric>

#include "support/files.h"
#include "support/world.h"
#include "tensor/hdf5.h"

namespace cmoe {
namespace {

// One folder that all ranks know.
class SharedFolder {
 public:
  SharedFolder() {
    if (test_world().rank() == 0) own_ = std::make_unique<TempFolder>();
    path_ = test_world().broadcast_string(own_ ? own_->path().string() : "", 0);
  }
  ~SharedFolder() { test_world().barrier(); }  // nobody still reads what rank 0 is about to remove
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::unique_ptr<TempFolder> own_;
  std::filesystem::path path_;
};

// Rows of rank r: the last rank has none when there are several, the others r + 3.
int64_t rows_of(int rank) { return test_world().size() > 1 && rank == test_world().size() - 1 ? 0 : rank + 3; }

int64_t rows_before(int rank) {
  int64_t rows = 0;
  for (int r = 0; r < rank; ++r) rows += rows_of(r);
  return rows;
}

// A dataset of three columns, value = 10 row + column, written by all ranks and read back by all and by one.
template <class T>
void round_trip(const std::filesystem::path& path) {
  Communicator& world = test_world();
  const int64_t mine = rows_of(world.rank()), before = rows_before(world.rank()), total = rows_before(world.size());
  std::vector<T> values(static_cast<size_t>(mine * 3));
  for (int64_t i = 0; i < mine * 3; ++i) values[static_cast<size_t>(i)] = static_cast<T>(10 * (before + i / 3) + i % 3);
  {
    H5File file = H5File::create(path, world.native_handle());
    file.create_dataset("group/sub/values", h5_type_of<T>(), {total, 3});
    file.set_attribute("group/sub/values", "unit", "tokens");
    file.write("group/sub/values", std::span<const T>(values), {before, 0}, {mine, 3});
    file.close();
  }
  world.barrier();
  {
    const H5File file = H5File::open(path, world.native_handle());
    std::vector<T> back(values.size());
    file.read("group/sub/values", std::span<T>(back), {before, 0}, {mine, 3});
    EXPECT_EQ(back, values);
    // A column block, of another size on each rank.
    const int64_t rows = std::min<int64_t>(total, world.rank() + 1);
    std::vector<T> column(static_cast<size_t>(rows));
    file.read("group/sub/values", std::span<T>(column), {0, 1}, {rows, 1});
    for (int64_t r = 0; r < rows; ++r) EXPECT_EQ(column[static_cast<size_t>(r)], static_cast<T>(10 * r + 1));
  }
  world.barrier();
  const H5File alone = H5File::open(path);
  const std::vector<T> all = alone.read_all<T>("group/sub/values", {total, 3});
  for (int64_t i = 0; i < total * 3; ++i) EXPECT_EQ(all[static_cast<size_t>(i)], static_cast<T>(10 * (i / 3) + i % 3));
  EXPECT_EQ(alone.type("group/sub/values"), h5_type_of<T>());
  EXPECT_EQ(alone.string_attribute("group/sub/values", "unit"), "tokens");
}

TEST(Hdf5, EveryTypeOnEveryRank) {
  const SharedFolder folder;
  round_trip<int64_t>(folder / "i64.h5");
  round_trip<double>(folder / "f64.h5");
  round_trip<float>(folder / "f32.h5");
  round_trip<int32_t>(folder / "i32.h5");
  round_trip<uint16_t>(folder / "u16.h5");
  round_trip<uint8_t>(folder / "u8.h5");
}

// One row a call: ranks with few rows, or none, make as many calls as the rank with most.
TEST(Hdf5, SmallTransfersGiveTheSameFile) {
  const SharedFolder folder;
  H5File::set_max_transfer_bytes(25);
  round_trip<double>(folder / "f64.h5");
  H5File::set_max_transfer_bytes(1);
  round_trip<int32_t>(folder / "i32.h5");
  H5File::set_max_transfer_bytes(int64_t{1} << 30);
}

TEST(Hdf5, EmptyDatasetsAndMoreAxes) {
  const SharedFolder folder;
  Communicator& world = test_world();
  const auto path = folder / "x.h5";
  H5File file = H5File::create(path, world.native_handle());
  file.create_dataset("none", H5Type::f32, {0, 4});
  file.write("none", std::span<const float>(), {0, 0}, {0, 4});
  file.create_dataset("cube", H5Type::i32, {world.size(), 2, 2});
  const std::vector<int32_t> mine = {world.rank(), 1, 2, 3};
  file.write("cube", std::span<const int32_t>(mine), {world.rank(), 0, 0}, {1, 2, 2});
  file.close();
  world.barrier();
  const H5File back = H5File::open(path);
  EXPECT_EQ(back.shape("none"), (Shape{0, 4}));
  EXPECT_TRUE(back.read_all<float>("none").empty());
  const auto cube = back.read_all<int32_t>("cube");
  for (int r = 0; r < world.size(); ++r) EXPECT_EQ(cube[static_cast<size_t>(4 * r)], r);
}

TEST(Hdf5, AttributesAndListing) {
  const SharedFolder folder;
  const auto path = folder / "x.h5";
  H5File file = H5File::create(path, test_world().native_handle());
  file.create_group("layers/1");
  file.create_group("layers/0");
  file.create_dataset("counts", H5Type::i64, {2});
  file.set_attribute("/", "version", std::string("0.1.0 \xc3\xa9"));
  file.set_attribute("/", "empty", "");
  file.set_attribute("/", "long", std::string(60000, 'x'));
  file.set_attribute("layers/1", "seed", int64_t{-7});
  file.set_attribute("layers/1", "seed", int64_t{1} << 40);  // replaces
  file.set_attribute("counts", "rate", 0.25);
  expect_error([&] { file.set_attribute("/", "k", std::string(60001, 'x')); },
               "attribute 'k' of '/' has 60001 bytes; expected at most 60000");
  file.close();
  test_world().barrier();
  const H5File back = H5File::open(path);
  EXPECT_EQ(back.string_attribute("/", "version"), "0.1.0 \xc3\xa9");
  EXPECT_EQ(back.string_attribute("/", "empty"), "");
  EXPECT_EQ(back.string_attribute("/", "long").size(), 60000u);
  EXPECT_EQ(back.integer_attribute("layers/1", "seed"), int64_t{1} << 40);
  EXPECT_EQ(back.number_attribute("counts", "rate"), 0.25);
  EXPECT_TRUE(back.exists("layers/0"));
  EXPECT_TRUE(back.exists("/layers/0"));
  EXPECT_FALSE(back.exists("layers/2/deep"));
  EXPECT_FALSE(back.has_attribute("/", "none"));
  EXPECT_EQ(back.children("/"), (std::vector<std::string>{"counts", "layers"}));
  EXPECT_EQ(back.children("layers"), (std::vector<std::string>{"0", "1"}));
  expect_error([&] { back.integer_attribute("/", "version"); }, "x.h5: attribute 'version' of '/' is not an integer");
  expect_error([&] { back.string_attribute("counts", "rate"); },
               "attribute 'rate' of 'counts' is not a string of fixed length");
  expect_error([&] { back.number_attribute("/", "none"); }, "x.h5: attribute 'none' of '/' is missing");
}

TEST(Hdf5, RefusalsNameFileAndDataset) {
  const SharedFolder folder;
  const auto path = folder / "x.h5";
  H5File file = H5File::create(path, test_world().native_handle());
  file.create_dataset("group/rates", H5Type::f64, {4, 2});
  file.close();
  test_world().barrier();
  const H5File back = H5File::open(path);
  std::vector<double> some(2);
  expect_error([&] { back.read_all<double>("counts"); }, "x.h5: dataset 'counts' is missing");
  expect_error([&] { back.read_all<double>("group"); }, "x.h5: 'group' is not a dataset");
  expect_error([&] { back.read_all<int64_t>("group/rates"); }, "x.h5: dataset 'group/rates' holds f64; expected i64");
  expect_error(
      [&] {
        back.read_all<double>("group/rates", {4, 3});
      },
      "dataset 'group/rates' has shape [4, 2], expected [4, 3]");
  expect_error(
      [&] {
        back.read("group/rates", std::span<double>(some), {4, 0}, {1, 2});
      },
      "dataset 'group/rates' has shape [4, 2]; the block of [1, 2] at [4, 0] is out of its bounds");
  expect_error([&] { back.children("none"); }, "x.h5: group 'none' is missing");
  expect_error([&] { H5File::open(folder / "none.h5"); }, "none.h5: no such file; expected an HDF5 file");
  expect_error([&] { H5File::create(folder / "no/such/x.h5", test_world().native_handle()); },
               "no/such/x.h5: cannot be created");
}

TEST(Hdf5, FilesCutShortAreRefused) {
  if (test_world().size() > 1) GTEST_SKIP() << "one rank tells";
  const TempFolder folder;
  {
    H5File file = H5File::create(folder / "x.h5");
    file.create_dataset("values", H5Type::f64, {1000});
    const std::vector<double> values(1000, 1.5);
    file.write("values", std::span<const double>(values), {0}, {1000});
    file.close();
  }
  const std::string whole = read_bytes(folder / "x.h5");
  for (const size_t length : {size_t{0}, size_t{7}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    write_bytes(folder / "cut.h5", whole.substr(0, length));
    expect_error([&] { H5File::open(folder / "cut.h5"); }, "cut.h5: is not a whole HDF5 file: ");
  }
  write_bytes(folder / "text.h5", std::string(5000, 'x'));
  expect_error([&] { H5File::open(folder / "text.h5"); }, "text.h5: is not a whole HDF5 file: ");
  write_bytes(folder / "cut.h5", whole.substr(0, whole.size() - 1));
  expect_error([&] { H5File::open(folder / "cut.h5"); }, "truncated file");
}

}  // namespace
}  // namespace cmoe
