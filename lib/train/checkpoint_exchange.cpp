#include "train/checkpoint_exchange.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <system_error>
#include <vector>

#include "core/error.h"
#include "io/open_files.h"
#include "io/part_pieces.h"
#include "io/safetensors_layout.h"

namespace exfusion {
namespace {
namespace fs = std::filesystem;

constexpr std::size_t kTextLimit = 16u << 20;
constexpr std::uint64_t kChecksumBlock = 64u << 20;

using TakeRange = std::function<void(std::uint64_t place, std::span<const std::byte> bytes)>;

at::Tensor bytes_tensor(const void* data, std::size_t size) {
  return at::from_blob(const_cast<void*>(data), {static_cast<std::int64_t>(size)}, at::kByte);
}

// Broadcasts these bytes of host memory from rank 0.
void broadcast_bytes(const CheckpointRanks& ranks, void* data, std::size_t size) {
  const at::Tensor here = bytes_tensor(data, size), there = here.to(ranks.device);
  ranks.group.broadcast(there, 0);
  if (!there.is_same(here)) here.copy_(there);
}

// The names of the tensors that rank 0 holds whole. Only it can tell what is on all ranks, or its own, from
// what another rank alone has.
std::set<std::string> whole_on_rank_0(const CheckpointRanks& ranks, const TensorParts& parts) {
  std::vector<char> whole(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) whole[i] = parts[i].shape.empty() ? 1 : 0;
  broadcast_bytes(ranks, whole.data(), whole.size());
  std::set<std::string> names;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (whole[i]) names.insert(parts[i].name);
  }
  return names;
}

// Where bytes go, and how many; none at the end.
using Address = std::array<std::int64_t, 2>;

void send_to_rank_0(const CheckpointRanks& ranks, std::uint64_t place, std::span<const std::byte> bytes) {
  const Address address = {static_cast<std::int64_t>(place), static_cast<std::int64_t>(bytes.size())};
  ranks.group.send(bytes_tensor(address.data(), sizeof address).to(ranks.device), 0);
  if (!bytes.empty()) ranks.group.send(bytes_tensor(bytes.data(), bytes.size()).to(ranks.device), 0);
}

// Writes what one rank sends.
void receive_ranges(const CheckpointRanks& ranks, int from, std::uint64_t file_size, OutputFile& file) {
  const auto options = at::TensorOptions(at::kByte).device(ranks.device);
  while (true) {
    Address address;
    const at::Tensor sent = at::empty({sizeof address}, options);
    ranks.group.receive(sent, from);
    std::memcpy(address.data(), sent.cpu().const_data_ptr(), sizeof address);
    const auto [place, size] = address;
    if (size == 0) return;
    if (size < 0 || size > kPieceBytes || place < 0 ||
        static_cast<std::uint64_t>(place) + static_cast<std::uint64_t>(size) > file_size)
      throw DistributedError(fmt::format("rank {} sent {} bytes for place {} of a file of {} bytes", from,
                                         size, place, file_size));
    const at::Tensor bytes = at::empty({size}, options);
    ranks.group.receive(bytes, from);
    const at::Tensor here = bytes.cpu();
    file.write_at(static_cast<std::uint64_t>(place), here.const_data_ptr(), here.nbytes());
  }
}

TakeRange write_to(OutputFile& file) {
  return [&file](std::uint64_t place, std::span<const std::byte> bytes) {
    file.write_at(place, bytes.data(), bytes.size());
  };
}

// Rank 0: a file of full size, with its header and what rank 0 holds. Full size, since other machines' caches
// of a network file system must not fill up a page behind an end that they believe in.
std::unique_ptr<OutputFile> begin_file(const fs::path& path, const SafetensorsLayout& layout,
                                       const TensorParts& parts) {
  auto file = std::make_unique<OutputFile>(path.string());
  file->resize(layout.size);
  file->write(layout.head);
  for (const TensorPart& part : parts) for_each_range(layout, part, write_to(*file));
  return file;
}

}  // namespace

std::string text_of_rank_0(const CheckpointRanks& ranks, const std::function<std::string()>& make) {
  if (ranks.group.alone()) return make();
  std::string text;
  std::exception_ptr failure;
  if (ranks.group.rank() == 0) {
    try {
      text = "+" + make();
      if (text.size() > kTextLimit) throw CheckpointError("a record of more than 16 MiB");
    } catch (const std::exception& error) {
      failure = std::current_exception();
      text = std::string("-") + error.what();
    }
  }
  std::uint64_t size = text.size();
  broadcast_bytes(ranks, &size, sizeof size);
  if (size < 1 || size > kTextLimit)
    throw DistributedError(fmt::format("rank 0 announced a text of {} bytes", size));
  text.resize(size);
  broadcast_bytes(ranks, text.data(), size);
  if (failure) std::rethrow_exception(failure);
  if (text[0] != '+') throw CheckpointError(text.substr(1));
  return text.substr(1);
}

bool folder_is_shared(const CheckpointRanks& ranks, const fs::path& folder) {
  if (ranks.group.alone()) return true;
  const std::string name = text_of_rank_0(ranks, [&] {
    std::random_device random;
    const std::string unique = fmt::format(".shared-{:08x}{:08x}", random(), random());
    OutputFile((folder / unique).string(), OutputFile::Mode::kNew).sync();
    return unique;
  });
  std::vector<double> seeing = {1.0};
  try {
    OutputFile((folder / name).string(), OutputFile::Mode::kPart);
  } catch (const FileError&) {
    seeing[0] = 0.0;
  }
  ranks.group.sum(seeing);
  std::error_code ignored;
  if (ranks.group.rank() == 0) fs::remove(folder / name, ignored);
  return seeing[0] == ranks.group.world();
}

std::uint32_t crc32_of_ranks(const CheckpointRanks& ranks, const fs::path& path, std::uint64_t size,
                             std::uint64_t block) {
  const ProcessGroup& group = ranks.group;
  std::vector<std::uint32_t> checksums((size + block - 1) / block);
  const at::Tensor numbers = at::zeros({static_cast<std::int64_t>(checksums.size())}, at::kLong);
  auto* values = numbers.mutable_data_ptr<std::int64_t>();
  for (std::size_t b = 0; b < checksums.size(); ++b) {
    if (b % static_cast<std::size_t>(group.world()) == static_cast<std::size_t>(group.rank()))
      values[b] = range_crc32(path, b * block, block);
  }
  const at::Tensor sums = numbers.to(ranks.device);
  group.all_reduce(sums);
  numbers.copy_(sums);
  std::transform(values, values + numbers.numel(), checksums.begin(),
                 [](std::int64_t value) { return static_cast<std::uint32_t>(value); });
  return combined_crc32(checksums, size, block);
}

FileRecord write_file_of_ranks(const CheckpointRanks& ranks, const fs::path& path, const TensorParts& parts,
                               const Metadata& metadata) {
  const ProcessGroup& group = ranks.group;
  const SafetensorsLayout layout = safetensors_layout(path.string(), parts, metadata);
  const std::set<std::string> whole = whole_on_rank_0(ranks, parts);
  const bool only_rank_0 = whole.size() == parts.size();  // has something to write
  std::unique_ptr<OutputFile> file;
  if (group.rank() == 0) file = begin_file(path, layout, parts);
  if (!only_rank_0 && ranks.shared) group.barrier();  // the file is there

  if (!only_rank_0 && group.rank() != 0) {
    if (ranks.shared) file = std::make_unique<OutputFile>(path.string(), OutputFile::Mode::kPart);
    const TakeRange take =
        file ? write_to(*file) : [&](std::uint64_t place, std::span<const std::byte> bytes) {
          send_to_rank_0(ranks, place, bytes);
        };
    for (const TensorPart& part : parts) {
      if (!whole.contains(part.name)) for_each_range(layout, part, take);
    }
    if (!ranks.shared) send_to_rank_0(ranks, 0, {});
  } else if (!only_rank_0 && !ranks.shared) {
    for (int rank = 1; rank < group.world(); ++rank) receive_ranges(ranks, rank, layout.size, *file);
  }
  if (file) file->sync();
  file.reset();

  if (only_rank_0 || !ranks.shared) {
    if (group.rank() != 0) return {};
    const CheckpointRanks one{.group = ProcessGroup(), .device = c10::kCPU};
    return {layout.size, crc32_text(crc32_of_ranks(one, path, layout.size, kChecksumBlock))};
  }
  group.barrier();  // everybody has written
  return {layout.size, crc32_text(crc32_of_ranks(ranks, path, layout.size, kChecksumBlock))};
}

void read_file_of_ranks(const CheckpointRanks& ranks, const SafetensorsFile* file, const TensorParts& parts) {
  for (const TensorPart& part : parts) {
    const at::ScalarType type = part.values.scalar_type();
    const std::int64_t elements = c10::multiply_integers(whole_shape(part)), most = piece_elements(type);
    const at::Tensor whole = file ? file->read(part.name).view({elements}) : at::Tensor();
    const auto options = at::TensorOptions(type).device(ranks.device);
    for (std::int64_t begin = 0; begin < elements; begin += most) {
      const std::int64_t size = std::min(most, elements - begin);
      const at::Tensor piece =
          file ? whole.narrow(0, begin, size).to(ranks.device) : at::empty({size}, options);
      ranks.group.broadcast(piece.view(at::kByte), 0);  // of any type
      copy_piece(part, begin, piece);
    }
  }
}

}  // namespace exfusion
