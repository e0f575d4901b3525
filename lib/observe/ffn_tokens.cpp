#include "observe/ffn_tokens.h"

#include <ATen/ATen.h>

#include "observe/model_pass.h"

namespace exfusion {

std::vector<BlockTokens> observe_tokens(Model& model, const HeldOutBatch& batch) {
  std::vector<BlockTokens> blocks;
  for (BlockPass& one : pass_through(model, batch, /*gradients=*/true).blocks)
    blocks.push_back(std::move(one.tokens));
  return blocks;
}

FfnTokens every_row(const FfnTokens& tokens, std::int64_t first, std::int64_t stride) {
  const auto rows = [&](const at::Tensor& x) { return x.slice(0, first, x.size(0), stride).clone(); };
  return {rows(tokens.x),      rows(tokens.activated), rows(tokens.delta1), rows(tokens.delta2),
          rows(tokens.growth), rows(tokens.image),     rows(tokens.label)};
}

FfnTokens stacked(const std::vector<FfnTokens>& parts) {
  std::vector<at::Tensor> x, activated, delta1, delta2, growth, image, label;
  std::int64_t images = 0;
  for (const FfnTokens& part : parts) {
    x.push_back(part.x);
    activated.push_back(part.activated);
    delta1.push_back(part.delta1);
    delta2.push_back(part.delta2);
    growth.push_back(part.growth);
    image.push_back(part.image + images);
    label.push_back(part.label);
    if (part.size() > 0) images = image.back().max().item<std::int64_t>() + 1;
  }
  return {at::cat(x),      at::cat(activated), at::cat(delta1), at::cat(delta2),
          at::cat(growth), at::cat(image),     at::cat(label)};
}

}  // namespace exfusion
