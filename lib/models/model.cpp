#include "models/model.h"

#include "core/recipe.h"

namespace exfusion {

std::vector<std::string> model_names() {
  return {"vit"};
}

ModelConfig ModelConfig::parse(Section section) {
  ModelConfig config;
  config.arch = section.require_one_of("arch", model_names());
  config.vit = ViTConfig::parse(section);
  return config;
}

ImageShape ModelConfig::image_shape() const {
  return {vit.channels, vit.image, vit.classes};
}

std::shared_ptr<Model> make_model(const ModelConfig& config, std::uint64_t seed) {
  return make_vit(config.vit, seed);
}

}  // namespace exfusion
