#include <sys/stat.h>

#include "data/dataset.h"
#include "data_files.h"

namespace exfusion {
namespace {

constexpr ImageShape kIdxShape{1, 4, 3};

class IdxDataset : public testing::Test {
 protected:
  IdxDataset() {
    write_bytes(train_images, idx_images(5, 4, 4));
    write_bytes(train_labels, idx_labels(5, 3));
    write_bytes(folder / "t10k-images-idx3-ubyte", idx_images(2, 4, 4));
    write_bytes(folder / "t10k-labels-idx1-ubyte", idx_labels(2, 3));
    config.name = "idx";
    config.root = folder.string();
  }
  Datasets build() const { return make_datasets(config, 1, kIdxShape); }
  void expect_refused(const std::filesystem::path& file, const std::string& why) const {
    expect_data_error([&] { build(); }, {file.string(), why});
  }

  TestFolder folder;
  std::filesystem::path train_images = folder / "train-images-idx3-ubyte";
  std::filesystem::path train_labels = folder / "train-labels-idx1-ubyte";
  DataConfig config;
};

TEST_F(IdxDataset, PlainFilesAreReadAsWritten) {
  const Datasets data = build();
  ASSERT_EQ(data.train->size(), 5);
  ASSERT_EQ(data.test->size(), 2);
  EXPECT_EQ(data.train->height, 4);
  EXPECT_EQ(data.train->label(4), 1);
  for (int pixel = 0; pixel < 16; ++pixel) EXPECT_EQ(data.train->image(2)[pixel], (2 * 16 + pixel) * 7 % 256);
}

TEST_F(IdxDataset, GzippedFilesAreReadAsPlainOnes) {
  const std::string checksum = build().checksum;
  for (const auto& path : {train_images, train_labels}) {
    write_gzip(path.string() + ".gz", read_bytes(path));
    std::filesystem::remove(path);
  }
  EXPECT_EQ(build().checksum, checksum);
}

TEST_F(IdxDataset, AMissingFileIsNamed) {
  std::filesystem::remove(train_labels);
  expect_refused(train_labels, "not found");
  config.root = "";
  expect_data_error([&] { build(); }, {"data.root"});
}

TEST_F(IdxDataset, APipeInPlaceOfAFileDoesNotHang) {
  std::filesystem::remove(train_labels);
  ASSERT_EQ(mkfifo(train_labels.c_str(), 0600), 0);
  expect_refused(train_labels, "not found");
}

TEST_F(IdxDataset, AWrongMagicNumberIsRefused) {
  write_bytes(train_images, idx_labels(40, 3));
  expect_refused(train_images, "magic number 0x00000801, expected 0x00000803");
}

TEST_F(IdxDataset, AFileThatEndsEarlyIsRefused) {
  const std::string images = read_bytes(train_images), labels = read_bytes(train_labels);
  for (const std::size_t size : {std::size_t{0}, std::size_t{3}, std::size_t{15}, images.size() - 1}) {
    write_bytes(train_images, images.substr(0, size));
    expect_refused(train_images, "truncated");
  }
  write_bytes(train_images, images);
  write_bytes(train_labels, labels.substr(0, labels.size() - 1));
  expect_refused(train_labels, "truncated");
}

TEST_F(IdxDataset, BytesAfterTheLastImageAreRefused) {
  write_bytes(train_images, read_bytes(train_images) + "x");
  expect_refused(train_images, "more bytes");
}

TEST_F(IdxDataset, ATruncatedGzipFileIsRefused) {
  const std::string gz = train_images.string() + ".gz";
  write_gzip(gz, read_bytes(train_images));
  const std::string whole = read_bytes(gz);
  for (const std::size_t size : {whole.size() / 2, whole.size() - 1}) {
    write_bytes(gz, whole.substr(0, size));
    expect_refused(gz, "");
  }
}

TEST_F(IdxDataset, AGzipFileWhoseOwnChecksumIsWrongIsRefused) {
  const std::string gz = train_images.string() + ".gz";
  write_gzip(gz, read_bytes(train_images));
  std::string bytes = read_bytes(gz);
  bytes[bytes.size() - 8] = static_cast<char>(bytes[bytes.size() - 8] ^ 1);  // CRC-32, then the size
  write_bytes(gz, bytes);
  expect_refused(gz, "incorrect data check");
}

TEST_F(IdxDataset, AHeaderThatPromisesMoreThanTheFileCanHoldIsRefusedBeforeAllocating) {
  const std::string header = big_endian(0x803) + big_endian(0xffffffffu) + big_endian(4) + big_endian(4);
  write_bytes(train_images, header);
  expect_refused(train_images, "limit");
  write_bytes(train_images, big_endian(0x803) + big_endian(100'000'000) + big_endian(4) + big_endian(4));
  expect_refused(train_images, "cannot hold");
}

TEST_F(IdxDataset, AnotherImageSizeThanTheModelsNamesBoth) {
  write_bytes(train_images, idx_images(5, 4, 5));
  expect_refused(train_images, "1 x 4 x 5");
  expect_refused(train_images, "1 x 4 x 4");
}

TEST_F(IdxDataset, LabelsMustFitImagesAndClasses) {
  write_bytes(train_labels, idx_labels(4, 3));
  expect_refused(train_labels, "holds 4, expected 5");
  write_bytes(train_labels, idx_labels(5, 4));
  expect_refused(train_labels, "label 3 of image 3");
}

TEST_F(IdxDataset, NoImagesAreRefused) {
  write_bytes(train_images, idx_images(0, 4, 4));
  expect_refused(train_images, "no images");
}

TEST_F(IdxDataset, NoDamagedByteDoesWorseThanADataError) {
  damage_in_turn(train_images, 1, [&] { build(); });
  const std::string gz = train_images.string() + ".gz";
  write_gzip(gz, read_bytes(train_images));
  damage_in_turn(gz, 1, [&] { build(); });
}

class FashionMnist : public testing::Test {
 protected:
  FashionMnist() { config.name = "fashion_mnist"; }
  void SetUp() override {
    if (!std::filesystem::exists(installed))
      GTEST_SKIP() << "the package dataset-fashion-mnist is not installed";
  }
  const std::filesystem::path installed = "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz";
  DataConfig config;
};

TEST(FashionMnistAbsent, TheMessageSaysHowToGetIt) {
  const TestFolder folder;
  DataConfig config;
  config.name = "fashion_mnist";
  config.root = folder.string();
  expect_data_error(
      [&] {
        make_datasets(config, 1, {1, 28, 10});
      },
      {"train-images-idx3-ubyte.gz", "apt-get install dataset-fashion-mnist", "data.root"});
}

TEST_F(FashionMnist, TheInstalledFilesAreTheGenuineOnes) {
  const Datasets data = make_datasets(config, 1, {1, 28, 10});
  EXPECT_EQ(data.train->size(), 60000);
  EXPECT_EQ(data.test->size(), 10000);
  std::vector<int> histogram(10);
  for (std::int64_t index = 0; index < data.train->size(); ++index) ++histogram[data.train->label(index)];
  EXPECT_EQ(histogram, std::vector<int>(10, 6000));  // balanced, says its README
}

TEST_F(FashionMnist, OneChangedLabelIsAChecksumMismatch) {
  const TestFolder folder;
  std::filesystem::create_symlink(installed, folder / "train-images-idx3-ubyte.gz");
  std::string labels = idx_labels(60000, 10);
  write_bytes(folder / "train-labels-idx1-ubyte", labels);
  config.root = folder.string();
  write_gzip(folder / "train-labels-idx1-ubyte.gz", labels);
  expect_data_error(
      [&] {
        make_datasets(config, 1, {1, 28, 10});
      },
      {"train-labels-idx1-ubyte.gz", "checksum mismatch", "741a4657"});
}

TEST_F(FashionMnist, AnotherNumberOfImagesIsRefused) {
  const TestFolder folder;
  write_bytes(folder / "train-images-idx3-ubyte", idx_images(3, 28, 28));
  write_bytes(folder / "train-labels-idx1-ubyte", idx_labels(3, 10));
  config.root = folder.string();
  expect_data_error([&] { make_datasets(config, 1, {1, 28, 10}); }, {"holds 3, expected 60000"});
}

}  // namespace
}  // namespace exfusion
