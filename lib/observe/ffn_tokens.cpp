#include "observe/ffn_tokens.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "nn/block.h"
#include "nn/ffn.h"
#include "nn/topk_ffn.h"
#include "observe/observed_blocks.h"

namespace exfusion {
namespace {

// An FFN's forward pass with what lies inside.
struct Pass {
  at::Tensor x, before, y, image;  // before GELU
};

at::Tensor forward(const at::Tensor& x, const FfnTensors& w, at::Tensor image, std::vector<Pass>& passes) {
  const at::Tensor before = at::linear(x, w[0], w[1]);
  const at::Tensor y = at::linear(at::gelu(before), w[2], w[3]);
  passes.push_back({x, before, y, std::move(image)});
  return y;
}

at::Tensor forward(const TopkFfn& ffn, const at::Tensor& x, const at::Tensor& image,
                   std::vector<Pass>& passes) {
  const TopkFfn::Routing routing = ffn.route(ffn.router_logits(x));
  at::Tensor y = at::zeros_like(x);
  for (std::int64_t k = 0; k < ffn.experts().size(); ++k) {
    FfnTensors expert;
    for (std::size_t t = 0; t < expert.size(); ++t) expert[t] = ffn.experts().tensors[t].select(0, k);
    const at::Tensor places = (routing.chosen == k).nonzero();  // [tokens of k, 2]: row, choice
    const at::Tensor rows = places.select(1, 0);
    const at::Tensor gates = routing.gates.index({rows, places.select(1, 1)});
    const at::Tensor output = forward(x.index_select(0, rows), expert, image.index_select(0, rows), passes);
    y = y.index_add(0, rows, gates.unsqueeze(1) * output);
  }
  return y;
}

FfnTokens tokens_of(const Pass& pass, const at::Tensor& delta1, const at::Tensor& delta2,
                    const at::Tensor& labels) {
  const at::Tensor seen = delta2.ne(0).any(1).nonzero().select(1, 0);
  const bool all = seen.numel() == delta2.size(0);
  const auto rows = [&](const at::Tensor& x) { return all ? x.detach() : x.detach().index_select(0, seen); };
  FfnTokens tokens{
      rows(pass.x), at::gelu(rows(pass.before)), rows(delta1), rows(delta2), {}, rows(pass.image), {}};
  tokens.growth =
      at::linalg_vecdot(tokens.delta1, rows(pass.before)) + at::linalg_vecdot(tokens.delta2, rows(pass.y));
  tokens.label = labels.index_select(0, tokens.image);
  return tokens;
}

}  // namespace

std::vector<BlockTokens> observe_tokens(Model& model, const HeldOutBatch& batch) {
  const at::AutoGradMode with_gradients(true);
  const ObservedBlocks observed(model);
  std::vector<Pass> passes;
  std::vector<std::pair<std::int64_t, std::size_t>> owners;  // block, and its first pass
  for (std::size_t i = 0; i < observed.blocks().size(); ++i) {
    Block& block = *observed.blocks()[i];
    const auto* dense = dynamic_cast<const Ffn*>(block.ffn().get());
    const auto* sparse = dynamic_cast<const TopkFfn*>(block.ffn().get());
    if (!dense && !sparse) continue;
    block.observe_ffn([&, i, dense, sparse](const at::Tensor& x, const at::Tensor&) {
      owners.emplace_back(static_cast<std::int64_t>(i), passes.size());
      const at::Tensor rows = x.reshape({-1, x.size(-1)});
      const at::Tensor image = at::arange(x.size(0)).repeat_interleave(x.size(1));
      return (dense ? forward(rows, dense->parameters_in_order(), image, passes)
                    : forward(*sparse, rows, image, passes))
          .view(x.sizes());
    });
  }
  const at::Tensor loss =
      at::cross_entropy_loss(model.forward(batch.images, {}), batch.labels, {}, at::Reduction::Sum);
  std::vector<at::Tensor> wanted;
  for (const Pass& pass : passes) wanted.insert(wanted.end(), {pass.before, pass.y});
  if (wanted.empty()) return {};
  const std::vector<at::Tensor> gradients = torch::autograd::grad({loss}, wanted);

  const at::NoGradGuard no_grad;
  std::vector<BlockTokens> blocks;
  for (std::size_t i = 0; i < owners.size(); ++i) {
    BlockTokens& block = blocks.emplace_back();
    block.block = owners[i].first;
    const std::size_t end = i + 1 < owners.size() ? owners[i + 1].second : passes.size();
    for (std::size_t p = owners[i].second; p < end; ++p)
      block.parts.push_back(tokens_of(passes[p], gradients[2 * p], gradients[2 * p + 1], batch.labels));
  }
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
