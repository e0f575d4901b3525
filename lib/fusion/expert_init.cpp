#include "fusion/expert_init.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/random.h"
#include "core/recipe.h"
#include "nn/ffn.h"

namespace exfusion {
namespace {

constexpr std::size_t kWeightOf[4] = {0, 0, 2, 2};  // fc1.weight for fc1.bias, fc2.weight for fc2.bias
constexpr std::size_t kPerUnit = 3;  // the first three tensors have a slice for each hidden unit …
constexpr std::int64_t kUnitDimension[kPerUnit] = {0, 0, 1};  // … along this dimension

// Where the numbers of expert k come from.
struct Place {
  std::uint64_t seed;
  std::int64_t ffn, k;
  CounterRandom draws(Draw what, std::int64_t sample) const {
    return {seed, what, static_cast<std::uint32_t>(k), static_cast<std::uint32_t>(sample)};
  }
  CounterRandom of_ffn(Draw what) const { return draws(what, ffn); }
  CounterRandom of_tensor(Draw what, std::size_t t) const {
    return draws(what, 4 * ffn + static_cast<std::int64_t>(t));
  }
};

FfnTensors copied(const FfnTensors& dense) {
  FfnTensors expert;
  for (std::size_t t = 0; t < 4; ++t) expert[t] = dense[t].detach().clone();
  return expert;
}

FfnTensors independent(const FusionConfig& config, const FfnTensors& dense, const Place& place,
                       const std::vector<float>& a) {
  FfnTensors expert = initial_ffn(dense[0].size(1), dense[0].size(0), place.seed, place.ffn, place.k);
  if (config.init != "independent_scaled") return expert;
  // A sum of independent draws has the variance sum_k a_k^2 of one.
  double sum_of_squared_a = 0.0;
  for (const float x : a) sum_of_squared_a += static_cast<double>(x) * x;
  for (at::Tensor& tensor : expert) tensor.mul_(1.0 / std::sqrt(sum_of_squared_a));
  return expert;
}

FfnTensors with_noise(const FusionConfig& config, const FfnTensors& dense, const Place& place) {
  FfnTensors expert = copied(dense);
  for (std::size_t t = 0; t < 4; ++t) {
    const double deviation = config.noise * dense[kWeightOf[t]].to(at::kDouble).std(false).item<double>();
    CounterRandom random = place.of_tensor(Draw::expert_noise, t);
    auto* x = expert[t].mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < expert[t].numel(); ++i)
      x[i] += static_cast<float>(deviation * random.normal());
  }
  return expert;
}

// The hidden units that are drawn anew, ascending; at least one where the ratio is above 0.
std::vector<std::int64_t> dropped_units(double ratio, std::int64_t hidden, const Place& place) {
  if (ratio <= 0.0) return {};
  const auto count = std::max<std::int64_t>(1, std::llround(ratio * static_cast<double>(hidden)));
  std::vector<std::int64_t> units = random_permutation(hidden, place.of_ffn(Draw::expert_drop));
  units.resize(static_cast<std::size_t>(count));
  std::sort(units.begin(), units.end());
  return units;
}

FfnTensors with_dropped_units(const FusionConfig& config, const FfnTensors& dense, const Place& place) {
  FfnTensors expert = copied(dense);
  const std::int64_t hidden = dense[0].size(0);
  if (config.permute) {
    const at::Tensor order =
        at::tensor(random_permutation(hidden, place.of_ffn(Draw::expert_permutation)), at::kLong);
    for (std::size_t t = 0; t < kPerUnit; ++t) expert[t] = expert[t].index_select(kUnitDimension[t], order);
  }
  const std::vector<std::int64_t> units = dropped_units(config.drop_ratio, hidden, place);
  if (units.empty()) return expert;
  const at::Tensor index = at::tensor(units, at::kLong);
  for (std::size_t t = 0; t < kPerUnit; ++t) {
    at::Tensor slice = expert[t].index_select(kUnitDimension[t], index);
    const at::Tensor replaced = slice.to(at::kDouble);
    const double mean = replaced.mean().item<double>(), deviation = replaced.std(false).item<double>();
    CounterRandom random = place.of_tensor(Draw::expert_redraw, t);
    auto* x = slice.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < slice.numel(); ++i)
      x[i] = static_cast<float>(mean + deviation * random.normal());
    expert[t].index_copy_(kUnitDimension[t], index, slice);
  }
  return expert;
}

FfnTensors part(const FfnTensors& dense, std::int64_t k, const std::vector<float>& a) {
  const std::int64_t hidden = dense[0].size(0), n = static_cast<std::int64_t>(a.size());
  const std::int64_t first = hidden * k / n, count = hidden * (k + 1) / n - first;
  const double scale = 1.0 / a[static_cast<std::size_t>(k)];
  FfnTensors expert;
  for (std::size_t t = 0; t < kPerUnit; ++t) {
    expert[t] = at::zeros_like(dense[t]);
    expert[t]
        .narrow(kUnitDimension[t], first, count)
        .copy_(dense[t].detach().narrow(kUnitDimension[t], first, count).to(at::kDouble) * scale);
  }
  expert[3] = (dense[3].detach().to(at::kDouble) / std::accumulate(a.begin(), a.end(), 0.0)).to(at::kFloat);
  return expert;
}

bool is_copy(const FusionConfig& config) {
  return config.init == "copy" || (config.init == "copy_noise" && config.noise == 0.0) ||
         (config.init == "drop" && config.drop_ratio == 0.0 && !config.permute);
}

}  // namespace

void parse_expert_init(Section& section, FusionConfig& config) {
  config.from = section.optional_string("from").value_or("");
  if (section.has("from") && config.from.empty()) section.problem("from", "from must not be empty");
  // Which folder holds experts is known when it is opened: not here, a recipe is also read without it.
  if (config.from.empty() || section.has("init")) {
    config.init = section.one_of(
        "init", config.init, {"independent", "independent_scaled", "copy", "copy_noise", "drop", "split"});
  } else {
    config.init = "stored";
  }
  const std::string chosen = config.init == "stored" ? "none is given here" : "this one is " + config.init;
  if (config.init == "copy_noise") {
    config.noise = section.in_range("noise", config.noise, 0.0, 1e3);
  } else {
    section.without_effect("noise", "noise belongs to init: copy_noise; " + chosen);
  }
  if (config.init == "drop") {
    config.drop_ratio = section.in_range("drop_ratio", config.drop_ratio, 0.0, 1.0);
    config.permute = section.get("permute", config.permute);
  } else {
    for (const std::string key : {"drop_ratio", "permute"})
      section.without_effect(key, key + " belongs to init: drop; " + chosen);
  }
  if (!config.from.empty() && config.init.starts_with("independent"))
    section.problem("init", "init: " + config.init +
                                " draws experts that have nothing of fusion.from; choose copy, copy_noise, "
                                "drop or split");
  if (const std::string problem = separation_problem(config); !problem.empty())
    section.problem("init", problem);
}

std::string separation_problem(const FusionConfig& config) {
  const bool separates = config.weights == "memory" || config.expert_dropout > 0.0 || config.dirichlet > 0.0;
  if (!is_copy(config) || config.experts < 2) return "";
  if (config.shares_moments())
    return "from shared moments identical experts take the same step whatever their weights (but for eps) "
           "and "
           "never separate; use copy_noise with noise > 0, drop or split, or state: full";
  if (separates) return "";
  return "identical experts with equal weights receive identical gradients and never separate, so this would "
         "be dense training; use copy_noise with noise > 0, drop or split, or what breaks the symmetry in "
         "training: weights: memory, expert_dropout or dirichlet";
}

bool keeps_source(const FusionConfig& config) {
  return !config.from.empty() && (config.init == "copy" || config.init == "split");
}

FfnTensors initial_expert(const FusionConfig& config, const FfnTensors& dense, std::uint64_t seed,
                          std::int64_t ffn, std::int64_t k, const std::vector<float>& a) {
  const at::NoGradGuard no_grad;
  const Place place{seed, ffn, k};
  if (config.init.starts_with("independent")) return independent(config, dense, place, a);
  if (config.init == "copy_noise") return with_noise(config, dense, place);
  if (config.init == "drop") return with_dropped_units(config, dense, place);
  if (config.init == "split") return part(dense, k, a);
  return copied(dense);  // copy; stored, until the folder is read
}

}  // namespace exfusion
