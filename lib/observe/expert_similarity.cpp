#include "observe/expert_similarity.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "analysis/assignment.h"
#include "analysis/draws.h"
#include "models/model.h"
#include "nn/ffn.h"
#include "observe/expert_pairs.h"
#include "observe/observed_blocks.h"
#include "observe/topk_trace.h"

namespace exfusion {
namespace {

constexpr double kOutputRounding = 1e-5;

// The experts of one layer, [N, …] in fp32, and what the layer makes of an input.
struct WatchedLayer {
  std::int64_t block = 0;
  FfnTensors experts;
  std::function<at::Tensor(const at::Tensor&)> output;
  std::vector<at::Tensor> inputs;  // [tokens, dim] of each batch
};

std::vector<WatchedLayer> layers_of(const Model& model, const std::vector<FusedSet>& sets) {
  std::vector<WatchedLayer> layers;
  for (const TopkBlock& block : topk_blocks(find_blocks(model)))
    layers.push_back({block.number,
                      block.ffn->experts().tensors,
                      [ffn = block.ffn](const at::Tensor& x) { return ffn->forward(x); },
                      {}});
  for (const FusedSet& set : sets) {
    if (set.whole() && set.size() > 1)
      layers.push_back({set.block,
                        set.experts,
                        [w = fused_tensors(set)](const at::Tensor& x) { return ffn_output(x, w); },
                        {}});
  }
  return layers;
}

at::Tensor permutation(std::int64_t n, analysis::Purpose purpose, std::uint32_t number, std::int64_t block) {
  return at::tensor(random_permutation(n, analysis::draw(purpose, number, static_cast<std::uint32_t>(block))),
                    at::kLong);
}

void watch_inputs(Model& model, const std::vector<HeldOutBatch>& batches, std::vector<WatchedLayer>& layers) {
  const ObservedBlocks observed(model);
  const auto each = std::max<std::int64_t>(1, kCommonTokens / static_cast<std::int64_t>(batches.size()));
  for (std::uint32_t b = 0; b < batches.size(); ++b) {
    for (WatchedLayer& layer : layers) {
      const auto& block = observed.blocks()[static_cast<std::size_t>(layer.block)];
      block->observe_ffn([&layer, &ffn = *block->ffn(), b, each](const at::Tensor& x, const at::Tensor&) {
        const at::Tensor rows = x.reshape({-1, x.size(-1)});
        const at::Tensor order = permutation(rows.size(0), analysis::Purpose::common_tokens, b, layer.block);
        layer.inputs.push_back(rows.index_select(0, order.slice(0, 0, each)));
        return ffn.forward(x);
      });
    }
    model.forward(batches[b].images, {});
  }
}

FfnTensors expert_of(const FfnTensors& experts, std::int64_t k) {
  FfnTensors one;
  for (std::size_t t = 0; t < one.size(); ++t) one[t] = experts[t].select(0, k).detach();
  return one;
}

// One expert with its units' inputs in another order, and its outputs too: nothing of what it computes is
// left, all of the distribution of its weights is.
FfnTensors scrambled(const FfnTensors& expert, std::uint32_t number, std::int64_t block) {
  const std::int64_t dim = expert[0].size(1);
  const at::Tensor in = permutation(dim, analysis::Purpose::shuffled_inputs, 2 * number, block),
                   out = permutation(dim, analysis::Purpose::shuffled_inputs, 2 * number + 1, block);
  return {expert[0].index_select(1, in), expert[1], expert[2].index_select(0, out),
          expert[3].index_select(0, out)};
}

ExpertSimilarity similarity_of(const WatchedLayer& layer) {
  const at::Tensor x = at::cat(layer.inputs), y = layer.output(x);
  const std::int64_t experts = layer.experts[0].size(0), hidden = layer.experts[0].size(1);
  ExpertSimilarity found{layer.block, expert_pairs(experts), x.size(0), x.size(1)};
  // What the expert adds to the layer; rounding errors of y say nothing.
  const auto offset = [&y](const at::Tensor& f) {
    const at::Tensor difference = f - y;
    const bool rounding = difference.norm().item<double>() <= kOutputRounding * y.norm().item<double>();
    return rounding ? at::zeros_like(y) : difference;
  };
  std::vector<at::Tensor> outputs, offsets;
  for (std::int64_t k = 0; k < experts; ++k) {
    outputs.push_back(ffn_output(x, expert_of(layer.experts, k)));
    offsets.push_back(offset(outputs.back()));
  }
  const at::Tensor order = permutation(x.size(0), analysis::Purpose::shuffled_rows, 0, layer.block);
  for (std::uint32_t p = 0; p < found.pairs.size(); ++p) {
    const auto [i, j] = found.pairs[p];
    const auto first = static_cast<std::size_t>(i), second = static_cast<std::size_t>(j);
    const at::Tensor &f = outputs[first], &g = outputs[second], shuffled = g.index_select(0, order);
    found.cka.push_back(linear_cka(f, g));
    found.cka_shuffled.push_back(linear_cka(f, shuffled));
    found.cka_offset.push_back(linear_cka(offsets[first], offsets[second]));
    found.cka_offset_shuffled.push_back(linear_cka(offsets[first], offset(shuffled)));
    if (hidden > kMostMatched) continue;
    const FfnTensors one = expert_of(layer.experts, i), other = expert_of(layer.experts, j);
    found.aligned.push_back(aligned_cosine(one, other));
    found.aligned_random.push_back(aligned_cosine(one, scrambled(other, p, layer.block)));
  }
  if (hidden > kMostMatched)
    found.not_aligned = fmt::format("not measured: {} hidden units, above {} matching them takes too long",
                                    hidden, kMostMatched);
  return found;
}

}  // namespace

double linear_cka(const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor a = x - x.mean(0, /*keepdim=*/true), b = y - y.mean(0, /*keepdim=*/true);
  const auto square = [](const at::Tensor& one, const at::Tensor& other) {
    return at::mm(one.t(), other).to(at::kDouble).square().sum().item<double>();
  };
  return square(b, a) / std::sqrt(square(a, a) * square(b, b));
}

AlignedCosine aligned_cosine(const FfnTensors& one, const FfnTensors& other) {
  const auto in_double = [](const at::Tensor& tensor) { return tensor.detach().to(at::kDouble); };
  // A unit is its row of the first matrix beside its column of the second.
  const at::Tensor a = at::cat({in_double(one[0]), in_double(one[2]).t()}, 1),
                   b = at::cat({in_double(other[0]), in_double(other[2]).t()}, 1);
  const at::Tensor gain = at::mm(a, b.t()).contiguous();
  const auto units = static_cast<std::size_t>(gain.size(0));
  const std::span<const double> gains(gain.const_data_ptr<double>(), units * units);
  const std::vector<std::size_t> match = analysis::best_assignment(gains, units);
  double sum = 0.0, in_place = 0.0;
  for (std::size_t u = 0; u < units; ++u) {
    sum += gains[u * units + match[u]];
    in_place += match[u] == u ? 1.0 : 0.0;
  }
  return {sum / (a.norm().item<double>() * b.norm().item<double>()), in_place / static_cast<double>(units)};
}

std::vector<ExpertSimilarity> expert_similarities(Model& model, const std::vector<FusedSet>& sets,
                                                  const std::vector<HeldOutBatch>& batches,
                                                  const std::function<void(double)>& progress) {
  const at::NoGradGuard no_grad;
  std::vector<WatchedLayer> layers = layers_of(model, sets);
  std::vector<ExpertSimilarity> found;
  if (batches.empty() || layers.empty()) return found;
  watch_inputs(model, batches, layers);
  const ObservedBlocks observed(model);  // for evaluation mode
  for (const WatchedLayer& layer : layers) {
    found.push_back(similarity_of(layer));
    if (progress) progress(static_cast<double>(found.size()) / static_cast<double>(layers.size()));
  }
  return found;
}

}  // namespace exfusion
