#include "io/safetensors_layout.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/error.h"
#include "io/part_pieces.h"
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

[[noreturn]] void refuse(const std::string& path, const std::string& name, const std::string& what) {
  throw FormatError("cannot write " + path + ": tensor " + quoted_name(name) + ": " + what);
}

void check_part(const std::string& path, const TensorPart& part) {
  if (part.name == "__metadata__") refuse(path, part.name, "the format reserves this name");
  if (part.name.find('\0') != std::string::npos) refuse(path, part.name, "a name must not contain NUL");
  if (!part.values.defined() || part.values.layout() != at::kStrided)
    refuse(path, part.name, "not a dense tensor");
  if (whole_shape(part).size() > kMaxRank)
    refuse(path, part.name, "more than " + std::to_string(kMaxRank) + " dimensions");
  if (stored_type(part.values.scalar_type()).empty())
    refuse(path, part.name,
           std::string("dtype ") + c10::toString(part.values.scalar_type()) + " cannot be stored");
}

// Its place in the format's order of element types.
std::ptrdiff_t type_rank(std::string_view name) {
  return std::ranges::find(kElementTypes, name, &ElementType::name) - kElementTypes.begin();
}

using Order = std::vector<std::pair<std::string, TensorInfo>>;

// In the order in which the data are written, with their byte ranges.
Order ordered(const std::string& path, const TensorParts& parts) {
  Order order;
  for (const TensorPart& part : parts) {
    check_part(path, part);
    TensorInfo info{.dtype = std::string(stored_type(part.values.scalar_type())), .shape = whole_shape(part)};
    info.end = static_cast<std::uint64_t>(part.values.element_size()) *
               static_cast<std::uint64_t>(c10::multiply_integers(info.shape));
    order.emplace_back(part.name, std::move(info));
  }
  std::ranges::sort(order, [](const auto& a, const auto& b) {
    return a.second.dtype != b.second.dtype ? type_rank(a.second.dtype) > type_rank(b.second.dtype)
                                            : a.first < b.first;
  });
  std::uint64_t offset = 0;
  for (auto& [name, info] : order) {
    info.begin = offset;
    info.end += offset;
    offset = info.end;
  }
  return order;
}

std::string header_text(const std::string& path, const Order& order, const Metadata& metadata) {
  using Json = nlohmann::ordered_json;
  std::string text = "{";
  try {
    if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump() + ",";
    for (const auto& [name, info] : order) {
      const Json entry = {
          {"dtype", info.dtype}, {"shape", info.shape}, {"data_offsets", {info.begin, info.end}}};
      text += Json(name).dump() + ":" + entry.dump() + ",";
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

std::string_view stored_type(at::ScalarType type) {
  const auto* found = std::ranges::find(kTypeNames, type, &TypeName::type);
  return found == std::end(kTypeNames) ? "" : found->name;
}

std::optional<at::ScalarType> scalar_type(std::string_view stored) {
  const auto* found = std::ranges::find(kTypeNames, stored, &TypeName::name);
  return found == std::end(kTypeNames) ? std::nullopt : std::optional(found->type);
}

SafetensorsLayout safetensors_layout(const std::string& path, const TensorParts& parts,
                                     const Metadata& metadata) {
  const Order order = ordered(path, parts);
  SafetensorsLayout layout;
  const std::string header = header_text(path, order, metadata);
  const std::uint64_t length = header.size();
  layout.head.assign(reinterpret_cast<const char*>(&length), sizeof length);
  layout.head += header;
  layout.size = layout.head.size() + (order.empty() ? 0 : order.back().second.end);
  for (const auto& [name, info] : order) {
    if (!layout.tensors.emplace(name, info).second) refuse(path, name, "the name is given twice");
  }
  return layout;
}

void for_each_range(const SafetensorsLayout& layout, const TensorPart& part,
                    const std::function<void(std::uint64_t place, std::span<const std::byte> bytes)>& take) {
  const std::uint64_t begin = layout.head.size() + layout.tensors.at(part.name).begin;
  for_each_piece(part, [&](std::int64_t place, const at::Tensor& piece) {
    take(begin + static_cast<std::uint64_t>(place * piece.element_size()),
         {static_cast<const std::byte*>(piece.const_data_ptr()), piece.nbytes()});
  });
}

}  // namespace exfusion
