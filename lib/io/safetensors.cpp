#include "io/safetensors.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <system_error>

#include "core/error.h"
#include "io/open_files.h"
#include "io/safetensors_format.h"
#include "io/safetensors_layout.h"

namespace exfusion {
namespace {

std::string shape_text(at::IntArrayRef shape) {
  std::ostringstream text;
  text << shape;
  return text.str();
}

// Maps a regular file; nothing is mapped when it is empty.
std::shared_ptr<const std::byte> map_file(const std::string& path, std::size_t& size) {
  const auto refuse = [&](const char* action) {
    throw FileError(std::string("cannot ") + action + " " + path + ": " +
                    std::generic_category().message(errno));
  };
  // Without O_NONBLOCK a named pipe would block here for ever.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) refuse("open");
  const std::shared_ptr<const void> closes(nullptr, [descriptor](const void*) { ::close(descriptor); });
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0) refuse("look at");
  if (!S_ISREG(status.st_mode)) throw FileError("cannot read " + path + ": not a regular file");
  size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return nullptr;
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (address == MAP_FAILED) refuse("map");
  return {static_cast<const std::byte*>(address),
          [address, size](const std::byte*) { ::munmap(address, size); }};
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  std::size_t size = 0;
  mapping_ = map_file(path, size);
  data_offset_ = parse_safetensors_header({mapping_.get(), size}, path, tensors_, metadata_);
}

at::Tensor SafetensorsFile::read(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw FormatError(path_ + ": holds no tensor " + quoted_name(name));
  const TensorInfo& info = found->second;
  const std::optional<at::ScalarType> type = scalar_type(info.dtype);
  if (!type) {
    throw FormatError(path_ + ": tensor " + quoted_name(name) + ": dtype " + info.dtype +
                      " cannot be read, expected " + "F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL");
  }
  const std::byte* begin = mapping_.get() + data_offset_ + info.begin;
  const std::size_t size = info.end - info.begin;
  if (*type == at::kBool) {
    const auto is_bool = [](std::byte value) { return value <= std::byte{1}; };
    if (!std::all_of(begin, begin + size, is_bool)) {
      throw FormatError(path_ + ": tensor " + quoted_name(name) + ": a BOOL must be 0 or 1");
    }
  }
  at::Tensor tensor = at::empty(info.shape, at::TensorOptions(*type));
  if (size > 0) std::memcpy(tensor.data_ptr(), begin, size);
  return tensor;
}

void SafetensorsFile::read_into(const std::string& name, at::Tensor target) const {
  const at::Tensor source = read(name);
  if (source.scalar_type() != target.scalar_type() || source.sizes() != target.sizes()) {
    const auto described = [](const at::Tensor& tensor) {
      return std::string(c10::toString(tensor.scalar_type())) + " " + shape_text(tensor.sizes());
    };
    throw FormatError(path_ + ": tensor " + quoted_name(name) + " is " + described(source) + ", expected " +
                      described(target));
  }
  const at::NoGradGuard no_grad;
  target.copy_(source);
}

void write_safetensors(const std::string& path, const NamedTensors& tensors, const Metadata& metadata) {
  TensorParts parts;
  for (const auto& [name, tensor] : tensors) parts.push_back({.name = name, .values = tensor});
  const SafetensorsLayout layout = safetensors_layout(path, parts, metadata);
  OutputFile file(path);
  file.write(layout.head);
  for (const TensorPart& part : parts) {
    for_each_range(layout, part, [&](std::uint64_t place, std::span<const std::byte> bytes) {
      file.write_at(place, bytes.data(), bytes.size());
    });
  }
  file.sync();
}

}  // namespace exfusion
