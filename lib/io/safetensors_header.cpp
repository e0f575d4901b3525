#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "io/safetensors.h"
#include "io/safetensors_format.h"

namespace exfusion {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

// The bytes of a tensor, from shape and element type; nothing when they cannot be counted.
std::optional<std::uint64_t> byte_count(const TensorInfo& info, std::uint64_t bits) {
  // Zeros count as ones here: an empty tensor's strides must not overflow either.
  std::uint64_t extent = 1;
  bool empty = false;
  for (const std::int64_t size : info.shape) {
    empty = empty || size == 0;
    const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(size, 1));
    if (extent > (std::uint64_t{1} << 56) / factor) return std::nullopt;
    extent *= factor;
  }
  if (empty) return 0;
  if (extent * bits % 8 != 0) return std::nullopt;
  return extent * bits / 8;
}

// Takes the header token by token, so that nothing but what the format allows is ever stored.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(const std::string& file, std::map<std::string, TensorInfo>& tensors, Metadata& metadata)
      : file_(file), tensors_(tensors), metadata_(metadata) {}

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(std::int64_t) override { unexpected("a negative number"); }
  bool number_float(double, const std::string&) override { unexpected("a fraction or a number too large"); }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool number_unsigned(std::uint64_t value) override;
  bool string(std::string& value) override;
  bool start_object(std::size_t) override;
  bool key(std::string& value) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    refuse("the header is no valid JSON at its byte " + std::to_string(position));
  }

 private:
  enum class Place { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };

  [[noreturn]] void refuse(const std::string& what) const {
    throw FormatError(file_ + ": not a well-formed safetensors file: " + what);
  }
  [[noreturn]] void refuse_tensor(const std::string& what) const {
    refuse("tensor " + quoted_name(name_) + ": " + what);
  }
  [[noreturn]] void unexpected(const std::string& what) const {
    refuse(what + " in the header" + (place_ == Place::kOutside ? "" : " at " + quoted_name(name_)) +
           " where the format has none");
  }
  void finish_tensor();

  const std::string& file_;
  std::map<std::string, TensorInfo>& tensors_;
  Metadata& metadata_;
  Place place_ = Place::kOutside;
  std::string name_, field_;  // the current keys of the first and second level
  bool has_metadata_ = false;
  // The tensor being read.
  TensorInfo info_;
  std::vector<std::uint64_t> offsets_;
  std::vector<std::string> fields_;
  std::uint64_t bits_ = 0;
};

bool HeaderReader::start_object(std::size_t) {
  if (place_ == Place::kOutside) {
    place_ = Place::kTop;
  } else if (place_ == Place::kTop && name_ == "__metadata__") {
    if (has_metadata_) refuse("__metadata__ is given twice");
    has_metadata_ = true;
    place_ = Place::kMetadata;
  } else if (place_ == Place::kTop) {
    if (tensors_.count(name_) != 0) refuse_tensor("the name is given twice");
    info_ = {};
    offsets_.clear();
    fields_.clear();
    place_ = Place::kTensor;
  } else {
    unexpected("an object");
  }
  return true;
}

bool HeaderReader::key(std::string& value) {
  if (place_ == Place::kTop) {
    name_ = std::move(value);
    if (name_.find('\0') != std::string::npos) refuse_tensor("a name must not contain NUL");
    return true;
  }
  field_ = std::move(value);
  if (place_ == Place::kTensor) {
    if (field_ != "dtype" && field_ != "shape" && field_ != "data_offsets") {
      refuse_tensor("unknown key " + quoted_name(field_) + ", expected dtype, shape and data_offsets");
    }
    if (std::find(fields_.begin(), fields_.end(), field_) != fields_.end())
      refuse_tensor(field_ + " is given twice");
    fields_.push_back(field_);
  }
  return true;
}

bool HeaderReader::string(std::string& value) {
  if (place_ == Place::kMetadata) {
    if (!metadata_.emplace(field_, std::move(value)).second) {
      refuse("__metadata__ gives " + quoted_name(field_) + " twice");
    }
  } else if (place_ == Place::kTensor && field_ == "dtype") {
    const auto known = [&](const ElementType& type) { return type.name == value; };
    const auto type = std::find_if(kElementTypes.begin(), kElementTypes.end(), known);
    if (type == kElementTypes.end()) refuse_tensor("unknown dtype " + quoted_name(value));
    bits_ = type->bits;
    info_.dtype = std::move(value);
  } else {
    unexpected("a string");
  }
  return true;
}

bool HeaderReader::start_array(std::size_t) {
  if (place_ != Place::kTensor || field_ == "dtype") unexpected("an array");
  place_ = field_ == "shape" ? Place::kShape : Place::kOffsets;
  return true;
}

bool HeaderReader::number_unsigned(std::uint64_t value) {
  if (place_ == Place::kShape) {
    if (value > std::numeric_limits<std::int64_t>::max()) refuse_tensor("a dimension is too large");
    if (info_.shape.size() == kMaxRank)
      refuse_tensor("more than " + std::to_string(kMaxRank) + " dimensions");
    info_.shape.push_back(static_cast<std::int64_t>(value));
  } else if (place_ == Place::kOffsets) {
    if (offsets_.size() == 2) refuse_tensor("data_offsets has more than 2 numbers");
    offsets_.push_back(value);
  } else {
    unexpected("a number");
  }
  return true;
}

bool HeaderReader::end_array() {
  if (place_ == Place::kOffsets && offsets_.size() != 2)
    refuse_tensor("data_offsets has fewer than 2 numbers");
  place_ = Place::kTensor;
  return true;
}

bool HeaderReader::end_object() {
  if (place_ == Place::kTensor) finish_tensor();
  place_ = place_ == Place::kTop ? Place::kOutside : Place::kTop;
  return true;
}

void HeaderReader::finish_tensor() {
  if (fields_.size() != 3) refuse_tensor("dtype, shape or data_offsets is missing");
  info_.begin = offsets_[0];
  info_.end = offsets_[1];
  const std::optional<std::uint64_t> bytes = byte_count(info_, bits_);
  if (!bytes) refuse_tensor("its shape does not give a whole number of bytes below 2^56 elements");
  if (info_.begin > info_.end || info_.end - info_.begin != *bytes) {
    refuse_tensor("data_offsets [" + std::to_string(info_.begin) + ", " + std::to_string(info_.end) +
                  "] must span the " + std::to_string(*bytes) + " bytes of its shape and dtype");
  }
  tensors_.emplace(name_, std::move(info_));
}

// The tensors' ranges must follow one another from 0 to the end of the data.
void check_coverage(const std::map<std::string, TensorInfo>& tensors, std::uint64_t data_size,
                    const std::string& file) {
  using Named = std::map<std::string, TensorInfo>::value_type;
  std::vector<const Named*> order;
  order.reserve(tensors.size());
  for (const Named& named : tensors) order.push_back(&named);
  std::sort(order.begin(), order.end(), [](const Named* a, const Named* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::uint64_t position = 0;
  for (const Named* named : order) {
    if (named->second.begin != position) {
      throw FormatError(file + ": not a well-formed safetensors file: tensor " + quoted_name(named->first) +
                        ": its data begin at " + std::to_string(named->second.begin) + ", expected " +
                        std::to_string(position) + " (no holes, no overlap)");
    }
    position = named->second.end;
  }
  if (position != data_size) {
    throw FormatError(file + ": not a well-formed safetensors file: the header describes " +
                      std::to_string(position) + " bytes of data, the file holds " +
                      std::to_string(data_size));
  }
}

}  // namespace

std::string quoted_name(std::string_view name) {
  constexpr std::size_t kLongest = 80;
  const nlohmann::json text = std::string(name.substr(0, kLongest));
  const std::string shown = text.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return name.size() > kLongest ? shown + "..." : shown;
}

std::size_t parse_safetensors_header(std::span<const std::byte> file, const std::string& name,
                                     std::map<std::string, TensorInfo>& tensors, Metadata& metadata) {
  const auto refuse = [&](const std::string& what) {
    throw FormatError(name + ": not a well-formed safetensors file: " + what);
  };
  std::uint64_t length = 0;
  if (file.size() < sizeof length) {
    refuse("it has " + std::to_string(file.size()) + " bytes, the header length alone takes 8");
  }
  std::memcpy(&length, file.data(), sizeof length);
  if (length > kMaxHeaderLength) {
    refuse("header length " + std::to_string(length) + " is above the limit of " +
           std::to_string(kMaxHeaderLength));
  }
  if (length > file.size() - sizeof length) {
    refuse("header length " + std::to_string(length) + " exceeds the file of " + std::to_string(file.size()) +
           " bytes");
  }
  const std::string_view header(reinterpret_cast<const char*>(file.data()) + sizeof length, length);
  if (header.empty() || header.front() != '{') refuse("the header does not start with '{'");
  // The JSON parser takes a NUL byte for the end of its input.
  if (header.find('\0') != std::string_view::npos) refuse("the header contains a NUL byte");

  tensors.clear();
  metadata.clear();
  HeaderReader reader(name, tensors, metadata);
  nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
  const std::size_t data_offset = sizeof length + length;
  check_coverage(tensors, file.size() - data_offset, name);
  return data_offset;
}

}  // namespace exfusion
