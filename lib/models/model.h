// A model: an ordinary libtorch module. Nothing here knows about fusion.
#pragma once
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "io/safetensors.h"
#include "models/vit.h"

namespace exfusion {

class Section;

struct ModelConfig {
  std::string arch;  // vit
  ViTConfig vit;
  static ModelConfig parse(Section section);  // of the recipe's `model` section
  ImageShape image_shape() const;
};

std::vector<std::string> model_names();  // for --list

class Model : public torch::nn::Module {
 public:
  // images [n, channels, size, size] fp32 -> logits [n, classes]. drop_path [n, drop_path_rates().size()]
  // fp32 holds the factor of each sample's residual branches (0, or 1 / keep probability); undefined: no drop
  // path.
  virtual at::Tensor forward(const at::Tensor& images, const at::Tensor& drop_path) = 0;
  // The model's end alone: a residual stream [n, tokens, dim] -> logits [n, classes], as if no block
  // followed.
  virtual at::Tensor classify(const at::Tensor& stream) = 0;
  virtual std::vector<double> drop_path_rates()
      const = 0;  // one per residual branch, in the order of the forward pass
  virtual bool decays(const std::string& parameter) const = 0;  // whether AdamW's weight decay applies to it
  // Whether the backward pass computes a block's activations once more instead of the forward pass keeping
  // them: the same gradients, less memory, a forward pass more of time.
  void set_recompute(bool on) { recompute_ = on; }
  // Matrix-multiply FLOPs of one image's forward pass.
  virtual double forward_flops() const = 0;

 protected:
  bool recompute_ = false;
};

// Builds a model and draws its initial parameters from `seed`.
std::shared_ptr<Model> make_model(const ModelConfig& config, std::uint64_t seed);

// What a model's file holds, as views: parameters, then buffers (state that training changes without a
// gradient).
NamedTensors model_tensors(const Model& model);

// The config of the model that dense_model returns.
ModelConfig dense_config(ModelConfig config);

// The dense model that equals this one in evaluation mode (itself, if it is dense), or null where an FFN has
// no dense form. `config` built `model`.
std::shared_ptr<Model> dense_model(const std::shared_ptr<Model>& model, const ModelConfig& config);

}  // namespace exfusion
