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
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>

#include "core/error.h"
#include "io/output_file.h"
#include "io/safetensors_format.h"

namespace exfusion {
namespace {

struct TypeName {
  std::string_view name;
  at::ScalarType type;
};

constexpr TypeName kTypeNames[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
    {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
    {"U8", at::kByte},    {"BOOL", at::kBool},
};

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

struct OutputTensor {
  const std::string* name;
  const at::Tensor* tensor;
  std::size_t type;  // index into kElementTypes
};

[[noreturn]] void refuse_output(const std::string& path, const std::string& name, const std::string& what) {
  throw FormatError("cannot write " + path + ": tensor " + quoted_name(name) + ": " + what);
}

OutputTensor checked_output(const std::string& path, const std::string& name, const at::Tensor& tensor) {
  if (name == "__metadata__") refuse_output(path, name, "the format reserves this name");
  if (name.find('\0') != std::string::npos) refuse_output(path, name, "a name must not contain NUL");
  if (!tensor.defined() || tensor.layout() != at::kStrided) refuse_output(path, name, "not a dense tensor");
  if (tensor.dim() > static_cast<std::int64_t>(kMaxRank)) {
    refuse_output(path, name, "more than " + std::to_string(kMaxRank) + " dimensions");
  }
  for (const TypeName& known : kTypeNames) {
    if (known.type != tensor.scalar_type()) continue;
    const auto type = std::find_if(kElementTypes.begin(), kElementTypes.end(),
                                   [&](const ElementType& element) { return element.name == known.name; });
    return {&name, &tensor, static_cast<std::size_t>(type - kElementTypes.begin())};
  }
  refuse_output(path, name,
                std::string("dtype ") + c10::toString(tensor.scalar_type()) + " cannot be stored");
}

// In the order in which the data are written.
std::vector<OutputTensor> ordered(const std::string& path, const NamedTensors& tensors) {
  std::vector<OutputTensor> order;
  for (const auto& [name, tensor] : tensors) order.push_back(checked_output(path, name, tensor));
  std::sort(order.begin(), order.end(), [](const OutputTensor& a, const OutputTensor& b) {
    return a.type != b.type ? a.type > b.type : *a.name < *b.name;
  });
  std::vector<std::string> names;
  for (const OutputTensor& output : order) names.push_back(*output.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) refuse_output(path, *twice, "the name is given twice");
  return order;
}

std::string header_text(const std::string& path, const std::vector<OutputTensor>& order,
                        const Metadata& metadata) {
  using Json = nlohmann::ordered_json;
  std::string text = "{";
  try {
    if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump() + ",";
    std::uint64_t offset = 0;
    for (const OutputTensor& output : order) {
      const std::uint64_t end = offset + output.tensor->nbytes();
      const Json entry = {{"dtype", kElementTypes[output.type].name},
                          {"shape", output.tensor->sizes().vec()},
                          {"data_offsets", {offset, end}}};
      text += Json(*output.name).dump() + ":" + entry.dump() + ",";
      offset = end;
    }
  } catch (const nlohmann::json::exception&) {
    throw FormatError("cannot write " + path + ": a name or the metadata is not valid UTF-8");
  }
  if (text.back() == ',') text.pop_back();
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data start at a multiple of 8
  if (text.size() > kMaxHeaderLength) {
    throw FormatError("cannot write " + path + ": its header of " + std::to_string(text.size()) +
                      " bytes is above the format's limit of " + std::to_string(kMaxHeaderLength));
  }
  return text;
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
  const auto type = std::find_if(std::begin(kTypeNames), std::end(kTypeNames),
                                 [&](const TypeName& known) { return known.name == info.dtype; });
  if (type == std::end(kTypeNames)) {
    throw FormatError(path_ + ": tensor " + quoted_name(name) + ": dtype " + info.dtype +
                      " cannot be read, expected " + "F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL");
  }
  const std::byte* begin = mapping_.get() + data_offset_ + info.begin;
  const std::size_t size = info.end - info.begin;
  if (type->type == at::kBool) {
    const auto is_bool = [](std::byte value) { return value <= std::byte{1}; };
    if (!std::all_of(begin, begin + size, is_bool)) {
      throw FormatError(path_ + ": tensor " + quoted_name(name) + ": a BOOL must be 0 or 1");
    }
  }
  at::Tensor tensor = at::empty(info.shape, at::TensorOptions(type->type));
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
  const std::vector<OutputTensor> order = ordered(path, tensors);
  const std::string header = header_text(path, order, metadata);
  const std::uint64_t length = header.size();
  OutputFile file(path);
  file.write(&length, sizeof length);
  file.write(header);
  for (const OutputTensor& output : order) {
    const at::Tensor data = output.tensor->detach().to(at::kCPU).contiguous();
    file.write(data.data_ptr(), data.nbytes());
  }
  file.sync();
}

}  // namespace exfusion
