#include "models/model.h"

#include <ATen/ATen.h>

#include "core/recipe.h"
#include "nn/ffn.h"

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

NamedTensors model_tensors(const Model& model) {
  NamedTensors tensors;
  for (const auto& item : model.named_parameters()) tensors.emplace_back(item.key(), item.value().detach());
  for (const auto& item : model.named_buffers()) tensors.emplace_back(item.key(), item.value());
  return tensors;
}

ModelConfig dense_config(ModelConfig config) {
  config.vit.ffn = FfnConfig{};
  return config;
}

std::shared_ptr<Model> dense_model(const std::shared_ptr<Model>& model, const ModelConfig& config) {
  if (config.vit.ffn.name == "dense") return model;
  const at::NoGradGuard no_grad;
  std::vector<FfnTensors> forms;
  for (const auto& ffn : find_feed_forwards(*model)) {
    const auto form = ffn->dense_form();
    if (!form) return nullptr;
    forms.push_back(*form);
  }
  const auto dense = make_model(dense_config(config), 0);
  const auto source = model->named_parameters();
  for (const auto& item : dense->named_parameters()) {
    if (const at::Tensor* same = source.find(item.key())) item.value().copy_(*same);
  }
  const auto targets = find_ffns(*dense);
  for (std::size_t i = 0; i < forms.size(); ++i) {
    const FfnTensors to = targets.at(i).ffn->parameters_in_order();
    for (std::size_t t = 0; t < to.size(); ++t) to[t].copy_(forms[i][t]);
  }
  dense->eval();
  return dense;
}

}  // namespace exfusion
