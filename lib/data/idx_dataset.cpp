// IDX, the format of MNIST: big-endian magic 0x00000801 (labels) or 0x00000803 (images), the sizes as 32 bits
// each, then bytes. zlib's gz functions read compressed and plain files alike.
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <optional>

#include "core/error.h"
#include "data/sources.h"

namespace exfusion {
namespace {

constexpr std::uint64_t kSizeLimit = std::uint64_t{8} << 30;
constexpr std::uint64_t kDeflateRatio = 1032;  // the most that deflate can compress (zlib's technical notes)
constexpr std::uint64_t kPiece = std::uint64_t{16} << 20;
constexpr std::uint32_t kLabelMagic = 0x801, kImageMagic = 0x803;

// A stream of bytes from a file that may be gzipped, with the CRC-32 of what was read so far.
class ByteReader {
 public:
  explicit ByteReader(std::filesystem::path path)
      : path_(std::move(path)), file_(gzopen(path_.c_str(), "rb")) {
    if (!file_) throw DataError(path_.string() + ": cannot be opened");
    gzbuffer(file_.get(), 1 << 18);
  }

  // `what` is for the message.
  void read(std::uint8_t* bytes, std::uint64_t count, const char* what) {
    const int got = gzread(file_.get(), bytes, static_cast<unsigned>(count));
    if (got < 0) fail(what);
    if (static_cast<std::uint64_t>(got) < count) {
      int code = Z_OK;
      gzerror(file_.get(), &code);
      if (code != Z_OK && code != Z_STREAM_END) fail(what);
      throw DataError(fmt::format("{}: truncated: the file ends within its {}", path_.string(), what));
    }
    crc_ = crc32_z(crc_, bytes, count);
  }

  std::uint32_t read_big_endian() {
    std::array<std::uint8_t, 4> bytes;
    read(bytes.data(), bytes.size(), "header");
    return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 |
           bytes[3];
  }

  // Grows piece by piece, so a header that promises more than the file holds does not cost its memory.
  std::vector<std::uint8_t> read_all(std::uint64_t count, const char* what) {
    check_size(count, what);
    std::vector<std::uint8_t> bytes;
    while (bytes.size() < count) {
      const std::uint64_t start = bytes.size(), piece = std::min(kPiece, count - start);
      bytes.resize(start + piece);
      read(bytes.data() + start, piece, what);
    }
    return bytes;
  }

  // Also what makes zlib check its own checksum at the end of a compressed file.
  void expect_end() {
    std::uint8_t byte;
    const int got = gzread(file_.get(), &byte, 1);
    if (got > 0) throw DataError(path_.string() + ": more bytes than its header says");
    int code = Z_OK;
    gzerror(file_.get(), &code);
    if (got < 0 || (code != Z_OK && code != Z_STREAM_END)) fail("end");
  }

  std::uint32_t crc() const { return static_cast<std::uint32_t>(crc_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  struct Close {
    void operator()(gzFile file) const { gzclose_r(file); }
  };

  void check_size(std::uint64_t count, const char* what) const {
    const std::uint64_t size = std::filesystem::file_size(path_);
    const std::uint64_t most = gzdirect(file_.get()) != 0 ? size : size * kDeflateRatio;
    if (count > kSizeLimit) {
      throw DataError(fmt::format("{}: its header says {} bytes of {}, the limit is {}", path_.string(),
                                  count, what, kSizeLimit));
    }
    if (count > most) {
      throw DataError(
          fmt::format("{}: truncated: its header says {} bytes of {}, a file of {} bytes cannot hold them",
                      path_.string(), count, what, size));
    }
  }

  [[noreturn]] void fail(const char* what) {
    int code = Z_OK;
    const std::string reason = gzerror(file_.get(), &code);
    throw DataError(fmt::format("{}: damaged, its {} cannot be read ({})", path_.string(), what, reason));
  }

  std::filesystem::path path_;
  std::unique_ptr<gzFile_s, Close> file_;
  uLong crc_ = crc32(0, nullptr, 0);
};

// The size and CRC-32 that a file's contents must have.
struct Genuine {
  std::uint32_t count, crc;
};

void check_magic(ByteReader& reader, std::uint32_t magic, const char* kind) {
  const std::uint32_t found = reader.read_big_endian();
  if (found == magic) return;
  throw DataError(fmt::format("{}: no IDX file of {}: magic number 0x{:08x}, expected 0x{:08x}",
                              reader.path().string(), kind, found, magic));
}

void check_genuine(const ByteReader& reader, const Genuine* genuine) {
  if (genuine == nullptr || reader.crc() == genuine->crc) return;
  throw DataError(
      fmt::format("{}: checksum mismatch: CRC-32 of its contents is {:08x}, Fashion-MNIST's is {:08x}",
                  reader.path().string(), reader.crc(), genuine->crc));
}

void check_count(const ByteReader& reader, std::uint64_t found, std::uint64_t expected, const char* why) {
  if (found == expected) return;
  throw DataError(
      fmt::format("{}: holds {}, expected {} ({})", reader.path().string(), found, expected, why));
}

std::vector<std::uint8_t> read_images(const std::filesystem::path& path, const ImageShape& shape,
                                      const Genuine* genuine) {
  ByteReader reader(path);
  check_magic(reader, kImageMagic, "images");
  const std::uint64_t count = reader.read_big_endian();
  const std::uint64_t height = reader.read_big_endian(), width = reader.read_big_endian();
  check_image_shape(path, 1, height, width, shape);
  if (count == 0) throw DataError(path.string() + ": holds no images");
  if (genuine != nullptr) check_count(reader, count, genuine->count, "images of Fashion-MNIST");
  std::vector<std::uint8_t> pixels =
      reader.read_all(count * height * width, "images");  // sides are the model's: small
  reader.expect_end();
  check_genuine(reader, genuine);
  return pixels;
}

std::vector<std::int64_t> read_labels(const std::filesystem::path& path, std::uint64_t images,
                                      std::int64_t classes, const Genuine* genuine) {
  ByteReader reader(path);
  check_magic(reader, kLabelMagic, "labels");
  const std::uint64_t count = reader.read_big_endian();
  check_count(reader, count, images, "labels, one per image");
  const std::vector<std::uint8_t> bytes = reader.read_all(count, "labels");
  reader.expect_end();
  check_genuine(reader, genuine);
  std::vector<std::int64_t> labels(bytes.begin(), bytes.end());
  check_labels(path, labels, classes);
  return labels;
}

// `name` or `name`.gz; a pipe or a folder of that name is as good as nothing.
std::filesystem::path find_file(const std::filesystem::path& folder, const std::string& name,
                                const std::string& hint) {
  for (const char* ending : {".gz", ""}) {
    const std::filesystem::path path = folder / (name + ending);
    std::error_code ignored;
    if (std::filesystem::is_regular_file(path, ignored)) return path;
  }
  throw DataError(fmt::format("{}: not found; {}", (folder / (name + ".gz")).string(), hint));
}

struct SplitFiles {
  const char *images, *labels;
  Genuine genuine_images, genuine_labels;
};

// CRC-32 of the uncompressed files of Debian's dataset-fashion-mnist; data/fashion_mnist.md has their MD5 and
// SHA-256.
constexpr SplitFiles kTrain{
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", {60000, 0xb4f29f28}, {60000, 0x741a4657}};
constexpr SplitFiles kTest{
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", {10000, 0x678fe0b1}, {10000, 0x80142c1f}};

std::shared_ptr<const Dataset> read_split(const SplitFiles& files, const std::filesystem::path& folder,
                                          const ImageShape& shape, bool fashion_mnist) {
  const std::string hint =
      fashion_mnist
          ? "install it with `apt-get install dataset-fashion-mnist` or name its folder in data.root"
          : "data.root names the folder with the four IDX files, docs/data.md has their names";
  const auto images = find_file(folder, files.images, hint), labels = find_file(folder, files.labels, hint);
  auto pixels = read_images(images, shape, fashion_mnist ? &files.genuine_images : nullptr);
  const std::uint64_t count = pixels.size() / static_cast<std::uint64_t>(shape.size * shape.size);
  auto classes = read_labels(labels, count, shape.classes, fashion_mnist ? &files.genuine_labels : nullptr);
  return memory_dataset(std::move(pixels), std::move(classes), shape);
}

}  // namespace

Splits read_fashion_mnist(const DataConfig& config, std::uint64_t /*seed*/, const ImageShape& shape) {
  const std::filesystem::path folder =
      config.root.empty() ? "/usr/share/datasets/fashion-mnist" : config.root;
  return {read_split(kTrain, folder, shape, true), read_split(kTest, folder, shape, true)};
}

Splits read_idx(const DataConfig& config, std::uint64_t /*seed*/, const ImageShape& shape) {
  if (config.root.empty())
    throw DataError("data.root is missing: the folder with the IDX files of data set `idx`");
  return {read_split(kTrain, config.root, shape, false), read_split(kTest, config.root, shape, false)};
}

}  // namespace exfusion
