#include "io/safetensors_layout.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "io/checksums.h"
#include "io/exact_tensors.h"
#include "io/files.h"
#include "io/open_files.h"
#include "io/part_pieces.h"
#include "test_folder.h"

namespace exfusion {
namespace {

// Columns [begin, end) of `whole` seen as [rows, columns], in rows that lie apart as those of padded experts.
TensorPart part_of(const std::string& name, const at::Tensor& whole, std::int64_t rows, std::int64_t begin,
                   std::int64_t end) {
  const at::Tensor padded = at::full({rows, end - begin + 5}, -7.0, whole.options());
  const at::Tensor values = padded.narrow(1, 0, end - begin);
  values.copy_(whole.view({rows, -1}).narrow(1, begin, end - begin));
  return {.name = name, .values = values, .shape = whole.sizes().vec(), .first_column = begin};
}

void write_parts(const std::string& path, const SafetensorsLayout& layout, const TensorParts& parts) {
  OutputFile file(path, OutputFile::Mode::kPart);
  for (const TensorPart& part : parts) {
    for_each_range(layout, part, [&](std::uint64_t place, std::span<const std::byte> bytes) {
      file.write_at(place, bytes.data(), bytes.size());
    });
  }
  file.sync();
}

using StoredParts = TestFolder;

const Metadata kMetadata = {{"format", "pt"}};

TEST_F(StoredParts, PartsOfSeveralWritersMakeTheFileOfOne) {
  const at::Tensor experts = at::rand({3, 4, 6}), moments = at::rand({30}, at::kDouble),
                   small = at::arange(3, at::kLong);
  write_safetensors(at("one"), {{"experts", experts}, {"moments", moments}, {"small", small}}, kMetadata);
  const std::vector<std::pair<std::int64_t, std::int64_t>> cuts = {{0, 0}, {0, 7}, {7, 24}};
  for (std::size_t rank = 0; rank < 3; ++rank) {
    const auto [begin, end] = cuts[rank];
    TensorParts parts = {part_of("experts", experts, 3, begin, end),
                         part_of("moments", moments, 1, begin, rank == 2 ? 30 : end),
                         {.name = "small", .values = small}};
    const SafetensorsLayout layout = safetensors_layout("many", parts, kMetadata);
    if (rank == 0) {
      OutputFile file(at("many"));
      file.write(layout.head);
      file.resize(layout.size);
    }
    EXPECT_EQ(layout.size, std::filesystem::file_size(at("one")));
    if (rank > 0) parts.pop_back();
    write_parts(at("many"), layout, parts);
  }
  EXPECT_TRUE(read_file(at("many")) == read_file(at("one")));
}

TEST_F(StoredParts, RangesAreThoseOfTheFile) {
  const NamedTensors tensors = {{"b", at::rand({2, 3})},
                                {"a", at::rand({5})},
                                {"z", at::ones({}, at::kLong)},
                                {"empty", at::rand({0, 3})},
                                {"half", at::rand({3}).to(at::kBFloat16)}};
  TensorParts parts;
  for (const auto& [name, tensor] : tensors) parts.push_back({.name = name, .values = tensor});
  const SafetensorsLayout layout = safetensors_layout("x", parts);
  write_safetensors(at("file"), tensors);
  const SafetensorsFile file(at("file"));
  ASSERT_EQ(file.tensors().size(), layout.tensors.size());
  for (const auto& [name, info] : file.tensors()) {
    EXPECT_EQ(layout.tensors.at(name).begin, info.begin) << name;
    EXPECT_EQ(layout.tensors.at(name).end, info.end) << name;
    EXPECT_EQ(layout.tensors.at(name).dtype, info.dtype) << name;
    EXPECT_EQ(layout.tensors.at(name).shape, info.shape) << name;
  }
  EXPECT_EQ(read_file(at("file")).substr(0, layout.head.size()), layout.head);
}

TEST(PartPieces, CoverWhatThePartHoldsAndAreBounded) {
  // Rows of more than a piece, of which the part has some columns.
  const std::int64_t columns = piece_elements(at::kFloat) + 1000, first = 300;
  const at::Tensor whole = at::arange(2 * columns, at::kFloat).view({2, columns});
  const TensorPart part = part_of("x", whole, 2, first, columns - 100);
  TensorPart copy = part;
  copy.values = at::zeros({2, columns - 400});
  std::int64_t elements = 0;
  for_each_piece(part, [&](std::int64_t place, const at::Tensor& piece) {
    EXPECT_LE(static_cast<std::int64_t>(piece.nbytes()), kPieceBytes);
    EXPECT_TRUE(at::equal(piece, whole.view(-1).narrow(0, place, piece.numel())));
    copy_piece(copy, place, piece);
    elements += piece.numel();
  });
  EXPECT_EQ(elements, part.values.numel());
  EXPECT_TRUE(at::equal(copy.values, part.values));
}

TEST(PartPieces, APartTakesWhatLiesInIt) {
  const at::Tensor whole = at::arange(24, at::kFloat).view({2, 3, 4});
  for (const std::int64_t size : {1, 5, 24}) {
    TensorPart part = part_of("x", at::zeros({2, 3, 4}), 2, 3, 10);
    TensorPart all = {.name = "x", .values = at::zeros({2, 16}).narrow(1, 0, 12).view({2, 3, 4})};
    ASSERT_FALSE(all.values.is_contiguous());
    for (std::int64_t place = 0; place < 24; place += size) {
      const at::Tensor piece = whole.view(-1).narrow(0, place, std::min<std::int64_t>(size, 24 - place));
      copy_piece(part, place, piece);
      copy_piece(all, place, piece);
    }
    EXPECT_TRUE(at::equal(part.values, whole.view({2, 12}).narrow(1, 3, 7))) << size;
    EXPECT_TRUE(at::equal(all.values, whole)) << size;
  }
}

TEST_F(StoredParts, AreComparedByTheirWholeShapes) {
  const at::Tensor whole = at::rand({2, 3, 4});
  write_safetensors(at("file"), {{"x", whole}});
  const SafetensorsFile file(at("file"));
  TensorPart part = part_of("x", whole, 2, 3, 3);
  EXPECT_NO_THROW(expect_exactly(file, {part}));
  part.shape = {3, 2, 4};
  EXPECT_THROW(expect_exactly(file, {part}), FormatError);
  EXPECT_THROW(expect_exactly(file, {{.name = "x", .values = whole.to(at::kDouble)}}), FormatError);
  EXPECT_THROW(expect_exactly(file, {{.name = "y", .values = whole}}), FormatError);
  EXPECT_THROW(expect_exactly(file, {}), FormatError);
}

TEST_F(StoredParts, ChecksumsOfBlocksCombineToTheWhole) {
  write_file(at("file"), "123456789");  // whose CRC-32 is the check value of zlib's polynomial
  for (const std::uint64_t block : {1u, 2u, 4u, 9u, 100u}) {
    std::vector<std::uint32_t> blocks;
    for (std::uint64_t begin = 0; begin < 9; begin += block)
      blocks.push_back(range_crc32(at("file"), begin, block));
    EXPECT_EQ(combined_crc32(blocks, 9, block), 0xcbf43926u) << block;
  }
  EXPECT_EQ(combined_crc32({}, 0, 4), 0u);
  EXPECT_EQ(crc32_text(0xabcu), "00000abc");
}

}  // namespace
}  // namespace exfusion
