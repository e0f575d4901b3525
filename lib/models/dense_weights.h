// A trained dense model's tensors into one of ours. Never a part of them in silence: every tensor of both
// sides is accounted for.
#pragma once
#include <string>
#include <vector>

#include "models/model.h"

namespace exfusion {

// What became of each tensor; names in order.
struct DenseWeightsReport {
  std::string file;
  std::vector<std::string> matched;  // copied
  std::vector<std::string> resized;  // position embeddings, with both shapes: "pos_embed [1, 197, 192] -> …"
  std::vector<std::string> fresh;    // named in `skip`: keep the model's own values
  std::vector<std::string> left_out;       // named in `skip`: of the file, not used
  std::vector<std::string> lines() const;  // for the log
};

// Copies the tensors of a safetensors file (F32, F16 or BF16; timm's names) into the model.
// Shapes must agree but that of pos_embed, whose square grid is resized as timm.layers.resample_abs_pos_embed
// does: bicubic with antialiasing in fp32, the class token's row kept. What a name in `skip`, or a beginning
// of names that ends with '.', covers is left out on both sides. Throws one FormatError naming every tensor
// that is missing, unexpected or of another shape or type, and every entry of `skip` that covers nothing; the
// model is then unchanged.
DenseWeightsReport load_dense_weights(Model& model, const std::string& file,
                                      const std::vector<std::string>& skip);

// pos_embed [1, prefix + g*g, dim] fp32 on a grid of side `grid`: [1, prefix + grid*grid, dim].
at::Tensor resize_position_embedding(const at::Tensor& embedding, std::int64_t prefix, std::int64_t grid);

}  // namespace exfusion
