// How Hugging Face's hub names the tensors of mixtures of experts, by the family of the model.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace exfusion {

// In model.layers.L of a block with experts (other blocks have none of these names):
//   BLOCK.gate.weight [experts, dim]            the router
//   BLOCK.experts.E.MATRIX.weight               of expert E, three matrices
struct HfLayout {
  std::string_view model_type;  // of config.json
  std::string_view block;
  std::string_view matrices[3];
};

// Throws FormatError, with `file`, for a family that is not known.
const HfLayout& hf_layout(const std::string& model_type, const std::string& file);

// The keys of config.json that may hold the number of experts.
inline constexpr const char* kExpertKeys[] = {"num_experts", "num_local_experts"};

struct ExpertTensor {
  std::int64_t layer = 0;
  std::int64_t expert = -1;  // -1: the router
  std::string_view matrix;   // of the expert; one of the layout's
};

// nullopt: neither router nor expert. Throws FormatError, with `file`, for what lies among the experts or
// routers under a name that the layout does not have (fused or quantized experts).
std::optional<ExpertTensor> expert_tensor(const HfLayout& layout, const std::string& name,
                                          const std::string& file);
std::string expert_tensor_name(const HfLayout& layout, const ExpertTensor& tensor);

}  // namespace exfusion
