#include "observe/fused_sets.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <stdexcept>

#include "nn/block.h"
#include "nn/ffn.h"

namespace exfusion {
namespace {

constexpr double kRounding = 1e-6;  // of fp32 weights and of a sum of them

std::int64_t block_of(const torch::nn::Module& model, const std::string& name) {
  for (const NamedFfn& named : find_ffns(model)) {
    if (named.name != name) continue;
    const auto blocks = find_blocks(model);
    const auto found =
        std::ranges::find_if(blocks, [&](const auto& block) { return block->ffn() == named.ffn; });
    if (found != blocks.end()) return found - blocks.begin();
  }
  throw std::invalid_argument("no block has an FFN " + name);
}

at::Tensor weights_of(const FusedSet& set, const at::Tensor& like) {
  return at::tensor(set.a, at::kDouble).to(like.scalar_type());
}

}  // namespace

FfnTensors FusedSet::expert(std::int64_t k) const {
  FfnTensors tensors;
  for (std::size_t t = 0; t < tensors.size(); ++t) tensors[t] = experts[t].select(0, k);
  return tensors;
}

std::vector<FusedSet> fused_sets(const torch::nn::Module& model, const std::deque<ExpertBank>& banks) {
  std::vector<FusedSet> sets;
  for (const ExpertBank& bank : banks) {
    FusedSet& set = sets.emplace_back();
    set.name = bank.name();
    set.block = block_of(model, set.name);
    set.a.assign(bank.a().begin(), bank.a().end());
    if (!bank.shard().whole()) continue;
    for (std::size_t t = 0; t < set.experts.size(); ++t) set.experts[t] = bank.expert_tensors()[t].cpu();
  }
  return sets;
}

FfnTensors fused_tensors(const FusedSet& set) {
  const at::NoGradGuard no_grad;
  FfnTensors fused;
  for (std::size_t t = 0; t < fused.size(); ++t)
    fused[t] = at::tensordot(weights_of(set, set.experts[t]), set.experts[t], {0}, {0});
  return fused;
}

FfnTensors offsets(const FusedSet& set) {
  const at::NoGradGuard no_grad;
  const FfnTensors fused = fused_tensors(set);
  FfnTensors differences;
  at::Tensor rounding = at::ones({set.size()}, at::kBool);
  for (std::size_t t = 0; t < fused.size(); ++t) {
    differences[t] = set.experts[t] - fused[t];
    const at::Tensor norms = differences[t].flatten(1).norm(2, 1);
    rounding = rounding.logical_and(norms <= kRounding * fused[t].norm());
  }
  for (at::Tensor& tensor : differences) tensor.index_put_({rounding}, at::zeros({}, tensor.options()));
  return differences;
}

std::vector<double> offset_norms(const FfnTensors& offsets) {
  at::Tensor squares = at::zeros({offsets[0].size(0)}, at::kDouble);
  for (const at::Tensor& tensor : offsets) squares += tensor.flatten(1).to(at::kDouble).square().sum(1);
  const at::Tensor norms = squares.sqrt();
  return {norms.const_data_ptr<double>(), norms.const_data_ptr<double>() + norms.numel()};
}

}  // namespace exfusion
