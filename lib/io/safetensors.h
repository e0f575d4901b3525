// safetensors (format 0.8: u64 header length, JSON header, contiguous little-endian data), read and written
// without Python. Reading treats the bytes as untrusted: header length, JSON, shapes, offsets and coverage
// are checked before anything is used.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace exfusion {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;  // in the order given
using Metadata = std::map<std::string, std::string>;

struct TensorInfo {
  std::string dtype;  // "F32", "BF16", "I64", … as in the format
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // byte range in the data part
};

// A file mapped into memory.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(
      const std::string& path);  // throws FileError (cannot read), FormatError (not well formed)
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const Metadata& metadata() const { return metadata_; }
  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  // A copy of the tensor. Throws FormatError if the name is missing or its dtype has no counterpart in
  // libtorch.
  at::Tensor read(const std::string& name) const;
  // Copies into `target`; throws FormatError naming both when dtype or shape differ.
  void read_into(const std::string& name, at::Tensor target) const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::shared_ptr<const std::byte> mapping_;
  std::size_t data_offset_ = 0;
  std::map<std::string, TensorInfo> tensors_;
  Metadata metadata_;
};

// Parses and checks the header of a whole file in memory; `name` is for messages. Returns the offset of the
// data part. Split from the file so that a fuzzer can call it on any bytes.
std::size_t parse_safetensors_header(std::span<const std::byte> file, const std::string& name,
                                     std::map<std::string, TensorInfo>& tensors, Metadata& metadata);

// Writes tensors (made contiguous, on the CPU) to `path` and syncs the file. Same input, same bytes. Throws
// FileError.
void write_safetensors(const std::string& path, const NamedTensors& tensors, const Metadata& metadata = {});

}  // namespace exfusion
