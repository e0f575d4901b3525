// Vision transformer (Dosovitskiy et al. 2021) as timm's VisionTransformer: same keys, shapes, arithmetic and
// initialisation.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "nn/ffn_config.h"

namespace exfusion {

class Model;
class Section;

struct ViTConfig {
  std::int64_t dim = 384, depth = 12, heads = 6, hidden = 1536;  // hidden: mlp_ratio * dim, rounded
  std::int64_t patch = 16, image = 224, channels = 3, classes = 1000;
  std::string pool = "token";  // token: the class token; avg: mean over the patches (no class token)
  double drop_path = 0.0;      // rate of the last block, in [0, 1); it grows linearly from 0
  FfnConfig ffn;               // what stands at the feed-forward position

  // Of the recipe's `model` section. `size` (Ti, S, B, L) presets dim, depth and heads; without it they have
  // no default.
  static ViTConfig parse(Section& section);
  std::int64_t tokens() const;  // (image / patch)^2, and the class token
  // Numbers in the model's file: its parameters, and what else an FFN keeps (FfnConfig::stored_numbers). A
  // double: the product of the largest values of a recipe is no int64.
  double parameter_count() const;
};

std::shared_ptr<Model> make_vit(const ViTConfig& config, std::uint64_t seed);

}  // namespace exfusion
