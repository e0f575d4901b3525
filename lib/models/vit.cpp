#include "models/vit.h"

#include <ATen/ATen.h>

#include <cmath>

#include "models/model.h"
#include "nn/block.h"
#include "nn/init.h"
#include "nn/recompute.h"

namespace exfusion {
namespace {

class ViT : public Model {
 public:
  explicit ViT(const ViTConfig& config);
  at::Tensor forward(const at::Tensor& images, const at::Tensor& drop_path) override;
  at::Tensor classify(const at::Tensor& stream) override { return head({stream, {}, {}}); }
  std::vector<double> drop_path_rates() const override;
  bool decays(const std::string& parameter) const override;
  double forward_flops() const override;
  void draw_parameters(std::uint64_t seed);

 private:
  at::Tensor embed(const at::Tensor& images);  // [n, tokens, dim]
  Residual run_block(std::size_t i, const Residual& stream, const at::Tensor& attention_factor,
                     const at::Tensor& ffn_factor);
  at::Tensor pooled(const Residual& stream);  // [n, dim]
  at::Tensor head(const Residual& stream) { return head_->forward(norm_->forward(pooled(stream))); }

  ViTConfig config_;
  at::Tensor cls_token_, pos_embed_;  // [1, 1, dim] (undefined without a class token), [1, tokens, dim]
  std::shared_ptr<PatchEmbed> patch_embed_;
  std::vector<std::shared_ptr<Block>> blocks_;
  std::vector<std::shared_ptr<FeedForward>> ffns_;  // of the blocks
  std::shared_ptr<LayerNorm> norm_;
  std::shared_ptr<Linear> head_;
};

ViT::ViT(const ViTConfig& config) : config_(config) {
  const bool token = config.pool == "token";
  if (token) cls_token_ = register_parameter("cls_token", at::zeros({1, 1, config.dim}));
  pos_embed_ = register_parameter("pos_embed", at::zeros({1, config.tokens(), config.dim}));
  patch_embed_ =
      register_module("patch_embed", std::make_shared<PatchEmbed>(config.channels, config.patch, config.dim));
  const auto blocks = register_module("blocks", std::make_shared<torch::nn::Module>());
  const std::vector<bool> chosen = config.ffn.chosen_blocks(config.depth);
  for (std::int64_t i = 0; i < config.depth; ++i) {
    const FfnConfig ffn = chosen[static_cast<std::size_t>(i)] ? config.ffn : FfnConfig{};
    ffns_.push_back(make_ffn(ffn, config.dim, config.hidden, i));
    auto block = std::make_shared<Block>(config.dim, config.heads, ffns_.back());
    blocks_.push_back(blocks->register_module(std::to_string(i), std::move(block)));
  }
  norm_ = register_module(token ? "norm" : "fc_norm", std::make_shared<LayerNorm>(config.dim));
  head_ = register_module("head", std::make_shared<Linear>(config.dim, config.classes));
}

at::Tensor ViT::embed(const at::Tensor& images) {
  const std::array<std::int64_t, 3> expected = {config_.channels, config_.image, config_.image};
  TORCH_CHECK(images.dim() == 4 && images.sizes().slice(1) == at::IntArrayRef(expected), "images are ",
              images.sizes(), ", the model takes [n, ", config_.channels, ", ", config_.image, ", ",
              config_.image, "]");
  const auto patches = patch_embed_->forward(images);
  if (!cls_token_.defined()) return patches + pos_embed_;
  return at::cat({cls_token_.expand({images.size(0), 1, config_.dim}), patches}, 1) + pos_embed_;
}

Residual ViT::run_block(std::size_t i, const Residual& stream, const at::Tensor& attention_factor,
                        const at::Tensor& ffn_factor) {
  if (!recompute_ || !is_training()) return blocks_[i]->forward(stream, attention_factor, ffn_factor);
  // The FFN's own loss is an output too, or its gradient would find no graph.
  const auto part = [this, i, factor = stream.factor, attention_factor,
                     ffn_factor](const std::vector<at::Tensor>& inputs) {
    const Residual input{inputs[0], inputs.size() > 1 ? inputs[1] : at::Tensor(), factor};
    const Residual output = blocks_[i]->forward(input, attention_factor, ffn_factor);
    std::vector<at::Tensor> outputs = {output.x, output.branch};
    if (const at::Tensor loss = ffns_[i]->auxiliary_loss(); loss.defined()) outputs.push_back(loss);
    return outputs;
  };
  std::vector<at::Tensor> inputs = {stream.x};
  if (stream.branch.defined()) inputs.push_back(stream.branch);
  const std::vector<at::Tensor> outputs = recomputed(part, inputs);
  return {outputs[0], outputs[1], ffn_factor};
}

at::Tensor ViT::forward(const at::Tensor& images, const at::Tensor& drop_path) {
  Residual stream{embed(images), {}, {}};
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const auto branch = static_cast<std::int64_t>(2 * i);
    stream = drop_path.defined()
                 ? run_block(i, stream, drop_path.select(1, branch), drop_path.select(1, branch + 1))
                 : run_block(i, stream, {}, {});
  }
  return head(stream);
}

// timm norms all tokens before it takes the class token; the result is the same.
at::Tensor ViT::pooled(const Residual& stream) {
  if (!cls_token_.defined()) return add_branch(stream).mean(1);
  const auto token = [](const at::Tensor& x) { return x.defined() ? x.slice(1, 0, 1) : x; };
  return add_branch({token(stream.x), token(stream.branch), stream.factor}).squeeze(1);
}

std::vector<double> ViT::drop_path_rates() const {
  std::vector<double> rates;
  for (std::int64_t i = 0; i < config_.depth; ++i) {
    const auto last = static_cast<double>(std::max<std::int64_t>(config_.depth - 1, 1));
    rates.insert(rates.end(), 2, config_.drop_path * static_cast<double>(i) / last);
  }
  return rates;
}

bool ViT::decays(const std::string& parameter) const {
  return parameter.ends_with(".weight") && named_parameters()[parameter].dim() > 1;
}

double ViT::forward_flops() const {
  const auto d = static_cast<double>(config_.dim), tokens = static_cast<double>(config_.tokens());
  const auto patches = cls_token_.defined() ? tokens - 1 : tokens;
  const double embedding =
      patches * static_cast<double>(config_.channels * config_.patch * config_.patch) * d;
  const double projections = tokens * 4 * d * d;     // qkv, proj
  const double attention = 2 * tokens * tokens * d;  // scores, weighted sum of v
  const double head = d * static_cast<double>(config_.classes);
  double flops = 2 * (embedding + static_cast<double>(config_.depth) * (projections + attention) + head);
  for (const auto& ffn : ffns_) flops += ffn->forward_flops(config_.tokens());
  return flops;
}

// As timm's init_weights_vit_timm: linear weights and position embedding normal with std 0.02, biases 0,
// class token normal with std 1e-6; the patch embedding keeps a convolution's own default, uniform in
// +-1/sqrt(fan in), weight and bias.
void ViT::draw_parameters(std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  const double patch_bound =
      1.0 / std::sqrt(static_cast<double>(config_.channels * config_.patch * config_.patch));
  // A tensor's number is its place in the dense model, where an FFN has four tensors: other kinds of FFN
  // start from the same values elsewhere.
  std::int64_t index = 0;
  for (const auto& item : named_parameters()) {
    const auto& name = item.key();
    if (name.find(".mlp.") != std::string::npos) continue;
    const InitialDraw draw{seed, Draw::init, 0, index++};
    if (name.ends_with(".norm2.bias")) index += std::tuple_size_v<FfnTensors>;
    if (name.starts_with("patch_embed.")) {
      fill_uniform(item.value(), patch_bound, draw);
    } else if (name == "cls_token") {
      fill_normal(item.value(), 1e-6, draw);
    } else if (item.value().dim() > 1) {
      fill_normal(item.value(), 0.02, draw);
    }
  }
  for (std::size_t i = 0; i < ffns_.size(); ++i)
    ffns_[i]->draw_parameters(seed, static_cast<std::int64_t>(i));
}

}  // namespace

std::shared_ptr<Model> make_vit(const ViTConfig& config, std::uint64_t seed) {
  auto model = std::make_shared<ViT>(config);
  model->draw_parameters(seed);
  return model;
}

}  // namespace exfusion
