#include <hdf5.h>

#include <numeric>

#include "data/dataset.h"
#include "data_files.h"

namespace exfusion {
namespace {

constexpr ImageShape kHdf5Shape{2, 3, 4};  // 18 bytes an image

struct Contents {
  std::vector<hsize_t> image_sizes = {6, 2, 3, 3}, label_sizes = {6};
  hid_t image_type = H5T_STD_U8LE, label_type = H5T_STD_I64LE;
  std::vector<std::int64_t> labels = {0, 1, 2, 3, 0, 1};
  bool write = true;  // else the data sets have a size and no bytes
  bool compress = false;
};

void write_data(hid_t file, const char* name, hid_t type, const std::vector<hsize_t>& sizes,
                const Contents& contents, hid_t memory_type, const void* values) {
  const hid_t space = H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr);
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  if (contents.compress) {
    H5Pset_chunk(creation, static_cast<int>(sizes.size()), sizes.data());
    H5Pset_deflate(creation, 6);
  }
  const hid_t data = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  if (contents.write) H5Dwrite(data, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
  H5Dclose(data), H5Pclose(creation), H5Sclose(space);
}

void write_file(const std::filesystem::path& path, const Contents& contents = {}) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  std::vector<std::uint8_t> pixels(1000);
  std::iota(pixels.begin(), pixels.end(), std::uint8_t{0});
  write_data(file, "images", contents.image_type, contents.image_sizes, contents, H5T_NATIVE_UINT8,
             pixels.data());
  write_data(file, "labels", contents.label_type, contents.label_sizes, contents, H5T_NATIVE_INT64,
             contents.labels.data());
  H5Fclose(file);
}

class Hdf5Dataset : public testing::Test {
 protected:
  Hdf5Dataset() {
    write_file(train);
    write_file(folder / "test.h5");
    config.name = "hdf5";
    config.root = folder.string();
  }
  Datasets build() const { return make_datasets(config, 1, kHdf5Shape); }
  void expect_refused(const Contents& contents, const std::string& why) const {
    write_file(train, contents);
    expect_data_error([&] { build(); }, {train.string(), why});
  }

  TestFolder folder;
  std::filesystem::path train = folder / "train.h5";
  DataConfig config;
};

TEST_F(Hdf5Dataset, ImagesAndLabelsAreReadAsWritten) {
  const Datasets data = build();
  ASSERT_EQ(data.train->size(), 6);
  EXPECT_EQ(data.train->channels, 2);
  EXPECT_EQ(data.train->label(3), 3);
  for (int pixel = 0; pixel < 18; ++pixel) EXPECT_EQ(data.train->image(5)[pixel], 5 * 18 + pixel);
}

TEST_F(Hdf5Dataset, LabelsOfTheOtherByteOrderAreReadAsTheSameNumbers) {
  const std::string checksum = build().checksum;
  Contents contents;
  contents.label_type = H5T_STD_I64BE;
  write_file(train, contents);
  EXPECT_EQ(build().checksum, checksum);
}

TEST_F(Hdf5Dataset, AMissingFileIsNamed) {
  std::filesystem::remove(train);
  expect_data_error([&] { build(); }, {train.string(), "not found", "docs/data.md"});
  config.root = "";
  expect_data_error([&] { build(); }, {"data.root"});
}

TEST_F(Hdf5Dataset, AnotherFormatIsRefusedQuietly) {
  write_bytes(train, "not HDF5 at all");
  testing::internal::CaptureStderr();
  expect_data_error([&] { build(); }, {train.string(), "no HDF5 file"});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(Hdf5Dataset, ATruncatedFileIsRefusedQuietly) {
  const std::string whole = read_bytes(train);
  testing::internal::CaptureStderr();
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, whole.size() / 2, whole.size() - 8}) {
    write_bytes(train, whole.substr(0, size));
    expect_data_error([&] { build(); }, {train.string()});
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(Hdf5Dataset, OtherTypesAreRefused) {
  Contents contents;
  contents.image_type = H5T_IEEE_F32LE;
  expect_refused(contents, "`images` must be of type uint8");
  contents.image_type = H5T_STD_I8LE;
  expect_refused(contents, "`images` must be of type uint8");
  contents = {};
  contents.label_type = H5T_STD_I32LE;
  expect_refused(contents, "`labels` must be of type int64");
}

TEST_F(Hdf5Dataset, OtherRanksAndSizesAreRefused) {
  Contents contents;
  contents.image_sizes = {6, 3, 3};
  expect_refused(contents, "`images` has 3 dimensions, expected 4");
  contents.image_sizes = {6, 3, 3, 2};
  expect_refused(contents, "3 x 3 x 2");
  contents = {};
  contents.label_sizes = {5};
  expect_refused(contents, "6 images but 5 labels");
  contents.label_sizes = {0}, contents.image_sizes[0] = 0;
  expect_refused(contents, "no images");
}

TEST_F(Hdf5Dataset, AMissingDataSetIsRefused) {
  const hid_t file = H5Fcreate(train.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  H5Fclose(file);
  expect_data_error([&] { build(); }, {train.string(), "`images`"});
}

TEST_F(Hdf5Dataset, LabelsOutsideTheClassesAreRefused) {
  Contents contents;
  contents.labels[2] = 4;
  expect_refused(contents, "label 4 of image 2 is outside 0 .. 3");
  contents.labels[2] = -1;
  expect_refused(contents, "label -1 of image 2");
}

TEST_F(Hdf5Dataset, CompressionIsRefused) {
  Contents contents;
  contents.compress = true;
  expect_refused(contents, "`images` must be stored contiguously");
}

TEST_F(Hdf5Dataset, SizesWithoutBytesBehindThemAreRefusedBeforeAllocating) {
  Contents contents;
  contents.write = false;
  expect_refused(contents, "truncated: `images` should have 108 bytes, the file stores 0");
  contents.image_sizes[0] = contents.label_sizes[0] = hsize_t{1} << 45;
  expect_refused(contents, "too small for 35184372088832 images");
}

TEST_F(Hdf5Dataset, NoDamagedByteDoesWorseThanADataError) {
  damage_in_turn(train, 1, [&] { build(); });
}

void read_damaged_and_exit(const std::filesystem::path& file, const std::function<void()>& build) {
  damage_in_turn(file, 3, build);
  std::filesystem::remove_all(file.parent_path());  // exit() leaves the fixture as it is
  std::exit(0);
}

// Of some damage HDF5 1.10 loses memory, which its end would put on stderr beside our one line.
TEST_F(Hdf5Dataset, DamagedFilesLeaveHdf5NothingToSayAtExit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // threads of the tests before do not live on in a fork
  EXPECT_EXIT(read_damaged_and_exit(train, [&] { build(); }), testing::ExitedWithCode(0), "^$");
}

}  // namespace
}  // namespace exfusion
