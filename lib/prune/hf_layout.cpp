#include "prune/hf_layout.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <vector>

#include "core/error.h"
#include "io/safetensors_format.h"

namespace exfusion {
namespace {

constexpr HfLayout kLayouts[] = {
    {"mixtral", "block_sparse_moe", {"w1", "w2", "w3"}},
    {"olmoe", "mlp", {"gate_proj", "up_proj", "down_proj"}},
    {"qwen2_moe", "mlp", {"gate_proj", "up_proj", "down_proj"}},
    {"qwen3_moe", "mlp", {"gate_proj", "up_proj", "down_proj"}},
};

// Both take from the front of `text` and say whether it was there.
bool take(std::string_view& text, std::string_view word) {
  if (!text.starts_with(word)) return false;
  text.remove_prefix(word.size());
  return true;
}
bool take_number(std::string_view& text, std::int64_t& number) {
  constexpr std::size_t kMostDigits = 6;
  const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  // Not 007: two spellings would be one tensor.
  if (digits == 0 || digits > kMostDigits || (digits > 1 && text.front() == '0')) return false;
  std::from_chars(text.data(), text.data() + digits, number);
  text.remove_prefix(digits);
  return true;
}

}  // namespace

const HfLayout& hf_layout(const std::string& model_type, const std::string& file) {
  const auto* found = std::ranges::find(kLayouts, model_type, &HfLayout::model_type);
  if (found != std::end(kLayouts)) return *found;
  std::vector<std::string_view> known;
  for (const HfLayout& layout : kLayouts) known.push_back(layout.model_type);
  throw FormatError(fmt::format("{}: model_type {} is none of those that can be pruned: {}", file,
                                quoted_name(model_type), fmt::join(known, ", ")));
}

std::optional<ExpertTensor> expert_tensor(const HfLayout& layout, const std::string& name,
                                          const std::string& file) {
  std::string_view rest = name;
  ExpertTensor tensor;
  if (!take(rest, "model.layers.") || !take_number(rest, tensor.layer) || !take(rest, ".") ||
      !take(rest, layout.block) || !take(rest, "."))
    return std::nullopt;
  if (rest == "gate.weight") return tensor;
  if (!rest.starts_with("experts.") && !rest.starts_with("gate.")) return std::nullopt;
  if (take(rest, "experts.") && take_number(rest, tensor.expert) && take(rest, ".")) {
    for (const std::string_view matrix : layout.matrices) {
      tensor.matrix = matrix;
      if (rest == fmt::format("{}.weight", matrix)) return tensor;
    }
  }
  throw FormatError(
      fmt::format("{}: tensor {}: {} has {} and gate.weight alone there (fused or quantized "
                  "experts are not supported)",
                  file, quoted_name(name), layout.model_type,
                  fmt::format("experts.E.{{{}}}.weight", fmt::join(layout.matrices, ","))));
}

std::string expert_tensor_name(const HfLayout& layout, const ExpertTensor& tensor) {
  const std::string block = fmt::format("model.layers.{}.{}", tensor.layer, layout.block);
  if (tensor.expert < 0) return block + ".gate.weight";
  return fmt::format("{}.experts.{}.{}.weight", block, tensor.expert, tensor.matrix);
}

}  // namespace exfusion
