#include "observe/lens.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/draws.h"
#include "models/model.h"
#include "nn/ffn.h"
#include "observe/observed_blocks.h"
#include "observe/topk_trace.h"

namespace exfusion {
namespace {

at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

// The chosen experts with their gates, the largest gate first; ties in the order of the choice.
TopkFfn::Routing by_gate(TopkFfn::Routing routing) {
  const auto [gates, order] = routing.gates.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
  routing.gates = gates;
  routing.chosen = routing.chosen.gather(1, order);
  return routing;
}

LensTokens topk_tokens(const BlockPass& pass) {
  const at::Tensor order = pass.routing.gates.argsort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
  const at::Tensor gates = pass.routing.gates.gather(1, order).to(at::kDouble);
  const at::Tensor outputs =
      pass.outputs.gather(1, order.unsqueeze(-1).expand_as(pass.outputs)).to(at::kDouble);
  return {outputs.select(1, 0), (outputs * gates.unsqueeze(-1)).sum(1), rows_of(pass.stream).to(at::kDouble),
          outputs.norm(2, -1), gates};
}

LensTokens fused_tokens(const FusedSet& set, const BlockPass& pass) {
  const auto best = static_cast<std::size_t>(std::ranges::max_element(set.a) - set.a.begin());
  std::vector<std::size_t> order(set.a.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::swap(order[0], order[best]);
  const at::Tensor rows = rows_of(pass.x);
  LensTokens found{{}, rows_of(pass.y).to(at::kDouble), rows_of(pass.stream).to(at::kDouble), {}, {}};
  std::vector<at::Tensor> norms;
  std::vector<double> weights;
  for (const std::size_t k : order) {
    const at::Tensor output = ffn_output(rows, set.expert(static_cast<std::int64_t>(k))).to(at::kDouble);
    if (norms.empty()) found.single = output;
    norms.push_back(output.norm(2, -1));
    weights.push_back(set.a[k]);
  }
  found.norms = at::stack(norms, 1);
  found.weights = at::tensor(weights, at::kDouble).expand_as(found.norms);
  return found;
}

double mean_cosine(const at::Tensor& a, const at::Tensor& b) {
  return at::cosine_similarity(a, b, /*dim=*/1, /*eps=*/1e-300).mean().item<double>();
}

LensCosine unrelated_cosine(const LensTokens& tokens) {
  const at::Tensor norms = tokens.norms.contiguous(), weights = tokens.weights.contiguous();
  const at::Tensor residual = tokens.stream.norm(2, -1).contiguous();
  const auto k = static_cast<std::size_t>(norms.size(1)), rows = static_cast<std::size_t>(norms.size(0));
  LensCosine sum;
  for (std::size_t t = 0; t < rows; ++t) {
    const std::span<const double> w(weights.const_data_ptr<double>() + t * k, k);
    const std::span<const double> n(norms.const_data_ptr<double>() + t * k, k);
    sum.plain += orthogonal_cosine(w, n, 0.0);
    sum.residual += orthogonal_cosine(w, n, residual.const_data_ptr<double>()[t]);
  }
  return {sum.plain / static_cast<double>(rows), sum.residual / static_cast<double>(rows)};
}

LensTokens with_shuffled_single(LensTokens tokens, std::uint32_t batch) {
  const std::vector<std::int64_t> order =
      random_permutation(tokens.single.size(0), analysis::draw(analysis::Purpose::shuffled_tokens, batch));
  tokens.single = tokens.single.index_select(0, at::tensor(order, at::kLong));
  return tokens;
}

// Adds to `sum` what weighs `weight`.
void add(LensCosine& sum, const LensCosine& one, double weight) {
  sum.plain += weight * one.plain;
  sum.residual += weight * one.residual;
}

void add_logit_lens(Model& model, const LensTokens& tokens, const at::Tensor& stream,
                    const at::Tensor& labels, LensLayer& layer) {
  const auto log_probabilities = [&](const at::Tensor& branch) {
    const at::Tensor sum = (tokens.stream + branch).to(at::kFloat).view(stream.sizes());
    return model.classify(sum).to(at::kDouble).log_softmax(-1);
  };
  const at::Tensor all = log_probabilities(tokens.ensemble), one = log_probabilities(tokens.single);
  layer.divergence += (all.exp() * (all - one)).sum().item<double>();
  layer.agreement += all.argmax(1).eq(one.argmax(1)).sum().item<double>();
  const at::Tensor p_all = all.exp().gather(1, labels.unsqueeze(1)).contiguous();
  const at::Tensor p_one = one.exp().gather(1, labels.unsqueeze(1)).contiguous();
  const at::Tensor label_of = labels.contiguous();
  for (std::int64_t i = 0; i < labels.size(0); ++i) {
    const auto label = static_cast<std::size_t>(label_of.const_data_ptr<std::int64_t>()[i]);
    layer.images[label] += 1.0;
    layer.label_ensemble[label] += p_all.const_data_ptr<double>()[i];
    layer.label_single[label] += p_one.const_data_ptr<double>()[i];
  }
}

void add_tokens(const LensTokens& tokens, std::uint32_t batch, LensLayer& layer) {
  const auto count = static_cast<double>(tokens.single.size(0));
  layer.tokens += count;
  add(layer.cosine, lens_cosine(tokens), count);
  add(layer.unrelated, unrelated_cosine(tokens), count);
  add(layer.shuffled, lens_cosine(with_shuffled_single(tokens, batch)), count);
  layer.output_ratio += (tokens.single.norm(2, -1) / tokens.stream.norm(2, -1)).sum().item<double>();
}

void divide(LensLayer& layer) {
  for (LensCosine* one : {&layer.cosine, &layer.unrelated, &layer.shuffled})
    *one = {one->plain / layer.tokens, one->residual / layer.tokens};
  layer.output_ratio /= layer.tokens;
  const double images = std::reduce(layer.images.begin(), layer.images.end());
  layer.divergence /= images;
  layer.agreement /= images;
  for (std::size_t c = 0; c < layer.images.size(); ++c) {
    layer.label_ensemble[c] /= layer.images[c];
    layer.label_single[c] /= layer.images[c];
  }
}

const FusedSet* whole_set(const std::vector<FusedSet>& sets, std::int64_t block) {
  const auto found =
      std::ranges::find_if(sets, [block](const FusedSet& one) { return one.block == block && one.whole(); });
  return found == sets.end() ? nullptr : &*found;
}

LensLayer empty_layer(std::int64_t block, bool fused, std::int64_t classes) {
  LensLayer layer;
  layer.block = block;
  layer.fused = fused;
  for (std::vector<double>* of : {&layer.images, &layer.label_ensemble, &layer.label_single})
    of->assign(static_cast<std::size_t>(classes), 0.0);
  return layer;
}

void keep_largest(const std::vector<TopkBlock>& blocks, std::int64_t experts, bool renormalise) {
  for (const TopkBlock& block : blocks) {
    block.block->observe_ffn([&ffn = *block.ffn, experts, renormalise](const at::Tensor& x,
                                                                       const at::Tensor&) {
      const at::Tensor rows = rows_of(x);
      TopkFfn::Routing routing = by_gate(ffn.route(ffn.router_logits(rows)));
      const at::Tensor before = routing.gates.sum(1, /*keepdim=*/true);
      routing.chosen = routing.chosen.narrow(1, 0, experts);
      routing.gates = routing.gates.narrow(1, 0, experts);
      if (renormalise)
        routing.gates = routing.gates * (before / routing.gates.sum(1, /*keepdim=*/true).clamp_min(1e-20));
      return (expert_outputs(ffn, rows, routing.chosen) * routing.gates.unsqueeze(-1)).sum(1).view(x.sizes());
    });
  }
}

SweepPoint scored(std::int64_t experts, const std::vector<at::Tensor>& logits,
                  const std::vector<HeldOutBatch>& batches) {
  SweepPoint point{.experts = experts};
  double images = 0.0;
  for (std::size_t b = 0; b < batches.size(); ++b) {
    const at::Tensor wide = logits[b].to(at::kDouble), &labels = batches[b].labels;
    images += static_cast<double>(labels.size(0));
    point.loss += at::cross_entropy_loss(wide, labels, {}, at::Reduction::Sum).item<double>();
    point.accuracy += wide.argmax(1).eq(labels).sum().item<double>();
  }
  point.loss /= images;
  point.accuracy /= images;
  return point;
}

}  // namespace

double orthogonal_cosine(std::span<const double> weights, std::span<const double> norms, double residual) {
  double together = 0.0;
  for (std::size_t k = 0; k < weights.size(); ++k) together += weights[k] * weights[k] * norms[k] * norms[k];
  const double r = residual * residual, first = norms[0] * norms[0];
  return (r + weights[0] * first) / std::sqrt((r + first) * (r + together));
}

LensCosine lens_cosine(const LensTokens& tokens) {
  return {mean_cosine(tokens.single, tokens.ensemble),
          mean_cosine(tokens.stream + tokens.single, tokens.stream + tokens.ensemble)};
}

LensSeen::LensSeen(Model& model, const std::vector<FusedSet>& sets, std::int64_t classes,
                   const BlockShare& share)
    : model_(model), sets_(sets) {
  const std::vector<std::shared_ptr<Block>> blocks = find_blocks(model);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto block = static_cast<std::int64_t>(i);
    const bool topk = dynamic_cast<const TopkFfn*>(blocks[i]->ffn().get()) != nullptr;
    if (share.has(block) && (topk || whole_set(sets, block)))
      layers_.push_back(empty_layer(block, !topk, classes));
  }
}

void LensSeen::add(const ModelPass& pass, const HeldOutBatch& batch) {
  const ObservedBlocks evaluating(model_);
  // Side by side: what is to be computed for a layer is too small to be divided among threads.
  at::parallel_for(0, std::ssize(layers_), 1, [&](std::int64_t first, std::int64_t last) {
    const at::NoGradGuard no_grad;
    for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i) {
      LensLayer& layer = layers_[i];
      const BlockPass& ffn = pass.of_block(layer.block);
      const LensTokens tokens =
          layer.fused ? fused_tokens(*whole_set(sets_, layer.block), ffn) : topk_tokens(ffn);
      add_tokens(tokens, next_, layer);
      add_logit_lens(model_, tokens, ffn.stream, batch.labels, layer);
    }
  });
  ++next_;
}

std::vector<LensLayer> LensSeen::finish() const {
  std::vector<LensLayer> layers = layers_;
  for (LensLayer& layer : layers) divide(layer);
  return layers;
}

std::vector<LensLayer> observe_lens(Model& model, const std::vector<FusedSet>& sets,
                                    const std::vector<HeldOutBatch>& batches, std::int64_t classes) {
  LensSeen seen(model, sets, classes);
  if (seen.empty()) return {};
  for (const HeldOutBatch& batch : batches) seen.add(pass_through(model, batch, /*gradients=*/false), batch);
  return seen.finish();
}

GateSweep observe_gate_sweep(Model& model, const std::vector<HeldOutBatch>& batches,
                             const std::vector<at::Tensor>& logits) {
  const at::NoGradGuard no_grad;
  const ObservedBlocks observed(model);
  const std::vector<TopkBlock> blocks = topk_blocks(observed.blocks());
  GateSweep found;
  if (blocks.empty()) return found;
  const std::int64_t all = blocks[0].ffn->config().top_k;
  const auto swept = [&](std::int64_t experts, bool renormalise) {
    keep_largest(blocks, experts, renormalise);
    std::vector<at::Tensor> answers;
    for (const HeldOutBatch& batch : batches) answers.push_back(model.forward(batch.images, {}));
    return scored(experts, answers, batches);
  };
  for (std::int64_t k = 1; k < all; ++k) {
    found.as_is.push_back(swept(k, false));
    found.renormalised.push_back(swept(k, true));
  }
  found.as_is.push_back(logits.empty() ? swept(all, false) : scored(all, logits, batches));
  found.renormalised.push_back(found.as_is.back());
  return found;
}

}  // namespace exfusion
