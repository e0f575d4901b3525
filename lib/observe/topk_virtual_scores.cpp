#include "observe/topk_virtual_scores.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "analysis/draws.h"
#include "models/model.h"
#include "observe/observed_blocks.h"

namespace exfusion {
namespace {

// Some of the tokens that the loss sees (those of which delta is not 0), random ones.
at::Tensor sampled_rows(const at::Tensor& delta, std::int64_t batches, std::int64_t batch,
                        std::int64_t block) {
  const at::Tensor seen = delta.ne(0).any(1).nonzero().select(1, 0);
  std::vector<std::int64_t> places = random_permutation(
      seen.numel(), analysis::draw(analysis::Purpose::scored_tokens, static_cast<std::uint32_t>(batch),
                                   static_cast<std::uint32_t>(block)));
  places.resize(
      std::min(places.size(), static_cast<std::size_t>(std::max<std::int64_t>(1, kScoredTokens / batches))));
  std::ranges::sort(places);
  return seen.index_select(0, at::tensor(places, at::kLong));
}

// One layer's sampled tokens so far.
struct ScoredLayer {
  ScoredLayer(std::int64_t batches, std::int64_t classes, const TopkBlock& block)
      : sums(batches, block.ffn->config().experts, classes, block.number) {
    const FfnConfig& config = block.ffn->config();
    CounterRandom drawn =
        analysis::draw(analysis::Purpose::turned_outputs, 0, static_cast<std::uint32_t>(block.number));
    signs = random_signs({config.experts, block.ffn->experts().tensors[0].size(2), kRandomDirections}, drawn);
  }
  PreferenceSums sums;
  at::Tensor signs;  // [M, dim, repetitions]
  std::vector<at::Tensor> scores, per_unit, preferred, chosen, label, batch;
  std::vector<at::Tensor> random, random_per_unit;  // [tokens, M, repetitions]
};

void add_batch(const TopkBlock& block, const TopkPass& pass, const at::Tensor& labels, std::int64_t batches,
               std::int64_t number, ScoredLayer& layer) {
  const at::Tensor rows = sampled_rows(pass.delta, batches, number, block.number);
  const at::Tensor x = pass.x.reshape({-1, pass.x.size(-1)}).index_select(0, rows);
  const std::int64_t experts = block.ffn->config().experts;
  const at::Tensor outputs =
      block.ffn->outputs(x, at::arange(experts, at::kLong).expand({rows.size(0), experts}));
  const at::Tensor y = pass.y.index_select(0, rows), delta = pass.delta.index_select(0, rows);
  const TokenScores scores = output_scores(outputs, y, delta);
  const at::Tensor image = rows.floor_divide(pass.x.size(1)), label = labels.index_select(0, image);
  layer.sums.add(scores, image, label);
  layer.scores.push_back(scores.scores);
  layer.per_unit.push_back(scores.per_unit);
  layer.preferred.push_back(preferred_experts(scores.scores));
  layer.chosen.push_back(pass.routing.chosen.index_select(0, rows));
  layer.label.push_back(label);
  layer.batch.push_back(at::full({rows.size(0)}, number, at::kLong));
  // Expert by expert: [M, tokens, dim] x [M, dim, repetitions].
  const at::Tensor differences = outputs - y.unsqueeze(1);
  const at::Tensor turned =
      -at::bmm((differences * delta.unsqueeze(1)).transpose(0, 1), layer.signs).transpose(0, 1);
  const TokenScores random = with_sizes(turned, differences.norm(2, -1, /*keepdim=*/true));
  layer.random.push_back(random.scores);
  layer.random_per_unit.push_back(random.per_unit);
}

TopkVirtualScores finish(const TopkBlock& block, const ScoredLayer& layer, std::int64_t batches,
                         std::int64_t classes) {
  const FfnConfig& config = block.ffn->config();
  TopkVirtualScores found{block.number, config.experts, config.top_k, layer.sums.finish(), {}};
  const at::Tensor label = at::cat(layer.label), all = at::cat(layer.random),
                   per_unit = at::cat(layer.random_per_unit);
  std::vector<TokenScores> random;
  for (std::int64_t r = 0; r < all.size(2); ++r) random.push_back({all.select(2, r), per_unit.select(2, r)});
  compare_with_random({at::cat(layer.scores), at::cat(layer.per_unit)}, random, label, found.scores);
  found.agreement = router_agreement(at::cat(layer.preferred), at::cat(layer.chosen), label,
                                     at::cat(layer.batch), config.experts, classes, batches);
  return found;
}

std::vector<double> per_batch(const at::Tensor& of_token, const at::Tensor& batch, std::int64_t batches) {
  const at::Tensor sums =
      at::zeros({batches}, at::kDouble).index_add_(0, batch, of_token.to(at::kDouble)).contiguous();
  return {sums.const_data_ptr<double>(), sums.const_data_ptr<double>() + batches};
}

}  // namespace

std::vector<TopkPass> topk_passes(Model& model, const std::vector<TopkBlock>& blocks,
                                  const HeldOutBatch& batch) {
  const at::AutoGradMode with_gradients(true);
  const ObservedBlocks observed(model);
  std::vector<TopkPass> passes(blocks.size());
  for (std::size_t l = 0; l < blocks.size(); ++l) {
    blocks[l].block->observe_ffn(
        [&pass = passes[l], &ffn = *blocks[l].ffn](const at::Tensor& x, const at::Tensor& stream) {
          const at::Tensor rows = x.reshape({-1, x.size(-1)});
          pass.x = x.detach();
          pass.stream = stream.detach();
          pass.routing = ffn.route(ffn.router_logits(rows));
          pass.y = ffn.combine(rows, pass.routing);
          if (!pass.y.requires_grad()) pass.y.set_requires_grad(true);
          return pass.y.view(x.sizes());
        });
  }
  const at::Tensor loss =
      at::cross_entropy_loss(model.forward(batch.images, {}), batch.labels, {}, at::Reduction::Sum);
  std::vector<at::Tensor> outputs;
  for (const TopkPass& pass : passes) outputs.push_back(pass.y);
  const std::vector<at::Tensor> gradients = torch::autograd::grad({loss}, outputs);
  for (std::size_t l = 0; l < passes.size(); ++l) {
    TopkPass& pass = passes[l];
    pass.delta = gradients[l];
    pass.y = pass.y.detach();
    pass.routing = {pass.routing.probabilities.detach(), pass.routing.chosen, pass.routing.gates.detach()};
  }
  return passes;
}

TokenScores output_scores(const at::Tensor& outputs, const at::Tensor& y, const at::Tensor& delta) {
  const at::Tensor differences = outputs - y.unsqueeze(1);
  return with_sizes(-(differences * delta.unsqueeze(1)).sum(2), differences.norm(2, 2));
}

RouterAgreement router_agreement(const at::Tensor& preferred, const at::Tensor& chosen,
                                 const at::Tensor& label, const at::Tensor& batch, std::int64_t experts,
                                 std::int64_t classes, std::int64_t batches) {
  const at::Tensor first = chosen.select(1, 0), some = preferred.ge(0);
  const at::Tensor by_class = at::bincount(label * experts + first, {}, classes * experts);
  const at::Tensor majority = by_class.view({classes, experts}).argmax(1).index_select(0, label);
  const auto share = [&](const at::Tensor& of) {
    return at::bincount(of.index({some}), {}, experts).to(at::kDouble) / some.sum();
  };
  return {per_batch(some, batch, batches), per_batch(preferred.eq(first), batch, batches),
          per_batch(chosen.eq(preferred.unsqueeze(1)).any(1), batch, batches),
          per_batch(preferred.eq(majority), batch, batches),
          (share(preferred) * share(first)).sum().item<double>()};
}

std::vector<TopkVirtualScores> observe_topk_scores(Model& model, const std::vector<HeldOutBatch>& batches,
                                                   std::int64_t classes) {
  const std::vector<TopkBlock> blocks = topk_blocks(find_blocks(model));
  const auto count = static_cast<std::int64_t>(batches.size());
  std::vector<ScoredLayer> layers;
  for (const TopkBlock& block : blocks) layers.emplace_back(count, classes, block);
  for (std::int64_t b = 0; b < count && !blocks.empty(); ++b) {
    const HeldOutBatch& batch = batches[static_cast<std::size_t>(b)];
    const std::vector<TopkPass> passes = topk_passes(model, blocks, batch);
    const at::NoGradGuard no_grad;
    for (std::size_t l = 0; l < blocks.size(); ++l)
      add_batch(blocks[l], passes[l], batch.labels, count, b, layers[l]);
  }
  std::vector<TopkVirtualScores> found;
  for (std::size_t l = 0; l < blocks.size() && count > 0; ++l)
    found.push_back(finish(blocks[l], layers[l], count, classes));
  return found;
}

}  // namespace exfusion
