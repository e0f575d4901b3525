// Where each tensor of a safetensors file lies, as a function of names, element types, shapes and metadata
// alone: processes that hold parts of the tensors agree on it without a word.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "io/safetensors.h"
#include "io/tensor_part.h"

namespace exfusion {

struct SafetensorsLayout {
  std::string head;                           // the file's first bytes: length and header
  std::map<std::string, TensorInfo> tensors;  // byte ranges count from the end of `head`
  std::uint64_t size = 0;                     // of the whole file
};

// Throws FormatError for what the format cannot store; `path` is for messages.
SafetensorsLayout safetensors_layout(const std::string& path, const TensorParts& parts,
                                     const Metadata& metadata = {});

// Calls `take` with all bytes that the part holds, at most kPieceBytes at a time, and their place in the
// file.
void for_each_range(const SafetensorsLayout& layout, const TensorPart& part,
                    const std::function<void(std::uint64_t place, std::span<const std::byte> bytes)>& take);

// The format's name of an element type and the other way round; "" and nullopt if there is none.
std::string_view stored_type(at::ScalarType type);
std::optional<at::ScalarType> scalar_type(std::string_view stored);

}  // namespace exfusion
