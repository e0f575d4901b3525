#include "observe/virtual_scores.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "analysis/draws.h"
#include "nn/matmul.h"

namespace exfusion {
namespace {

using analysis::NullComparison;

constexpr std::uint32_t kRandomDirections = 20, kShuffles = 100;

std::size_t cells(std::int64_t rows, std::int64_t columns = 1) {
  return static_cast<std::size_t>(rows * columns);
}

// [N, C] counts of tokens with a preferred expert.
std::vector<double> preference_table(const at::Tensor& preferred, const at::Tensor& labels,
                                     std::int64_t experts, std::int64_t classes) {
  std::vector<double> table(cells(experts, classes), 0.0);
  const auto expert = preferred.accessor<std::int64_t, 1>(), label = labels.accessor<std::int64_t, 1>();
  for (std::int64_t t = 0; t < preferred.size(0); ++t) {
    if (expert[t] >= 0) table[cells(expert[t], classes) + cells(label[t])] += 1.0;
  }
  return table;
}

double nmi_of(const std::vector<double>& table, std::int64_t classes) {
  const double total = std::accumulate(table.begin(), table.end(), 0.0);
  return total > 0.0 ? analysis::mutual_information(table, cells(classes)).nmi_sqrt() : std::nan("");
}

NullComparison compared(double measured, const std::vector<double>& null) {
  const auto finite = [](double x) { return std::isfinite(x); };
  if (finite(measured) && std::ranges::all_of(null, finite)) return analysis::compare(measured, null);
  const auto undefined = analysis::undefined("no expert, or one alone, is preferred");
  return {undefined, undefined, undefined, undefined};
}

NullComparison shuffle_null(double measured, const at::Tensor& preferred, const at::Tensor& image,
                            const at::Tensor& label, std::int64_t experts, std::int64_t classes,
                            std::int64_t block) {
  const std::int64_t images = image.numel() > 0 ? image.max().item<std::int64_t>() + 1 : 0;
  const auto of_token = image.accessor<std::int64_t, 1>(), given = label.accessor<std::int64_t, 1>();
  std::vector<std::int64_t> of_image(cells(images));
  for (std::int64_t t = 0; t < image.size(0); ++t) of_image[cells(of_token[t])] = given[t];
  const at::Tensor shuffled = at::empty_like(label);
  auto one = shuffled.accessor<std::int64_t, 1>();
  std::vector<double> null;
  for (std::uint32_t r = 0; r < kShuffles; ++r) {
    const std::vector<std::int64_t> order = random_permutation(
        images, analysis::draw(analysis::Purpose::class_shuffle, r, static_cast<std::uint32_t>(block)));
    for (std::int64_t t = 0; t < image.size(0); ++t) one[t] = of_image[cells(order[cells(of_token[t])])];
    null.push_back(nmi_of(preference_table(preferred, shuffled, experts, classes), classes));
  }
  return compared(measured, null);
}

NullComparison random_null(const FusedSet& set, const FfnTensors& differences, const FfnTokens& sample,
                           std::int64_t classes) {
  const auto nmi = [&](const FfnTensors& directions) {
    const at::Tensor preferred = preferred_experts(direction_scores(sample, directions));
    return nmi_of(preference_table(preferred, sample.label, set.size(), classes), classes);
  };
  std::vector<double> null;
  for (std::uint32_t r = 0; r < kRandomDirections; ++r)
    null.push_back(nmi(random_directions(differences, set.a, r, set.block)));
  return compared(nmi(differences), null);
}

// +1 or -1 each, from one random bit.
void fill_signs(const at::Tensor& tensor, CounterRandom& random) {
  auto* sign = tensor.mutable_data_ptr<float>();
  for (std::int64_t i = 0, end = tensor.numel(); i < end; i += 32) {
    const std::uint32_t bits = random.bits(),
                        count = static_cast<std::uint32_t>(std::min<std::int64_t>(32, end - i));
    for (std::uint32_t j = 0; j < count; ++j)
      sign[i + j] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(1.0f) | (bits >> j << 31));
  }
}

}  // namespace

at::Tensor direction_scores(const FfnTokens& tokens, const FfnTensors& directions) {
  const at::NoGradGuard no_grad;
  const std::int64_t n = directions[0].size(0), hidden = directions[0].size(1), dim = directions[0].size(2);
  // One product for all experts, so that what is multiplied on is [tokens, N, dim] and never [.., hidden].
  const at::Tensor first = directions[0].permute({1, 0, 2}).reshape({hidden, n * dim});
  const at::Tensor inner = linear_input_gradient(tokens.delta1, first).view({-1, n, dim}),
                   outer = linear_product(tokens.activated, directions[2].reshape({n * dim, hidden}), {})
                               .view({-1, n, dim});
  const at::Tensor products = inner * tokens.x.unsqueeze(1) + outer * tokens.delta2.unsqueeze(1);
  return -(products.sum(2) + at::mm(tokens.delta1, directions[1].t()) +
           at::mm(tokens.delta2, directions[3].t()));
}

at::Tensor preferred_experts(const at::Tensor& scores) {
  if (scores.size(1) < 2) return at::full({scores.size(0)}, -1, at::kLong);
  const auto [values, experts] = scores.topk(2, 1);
  return experts.select(1, 0).masked_fill(values.select(1, 0) == values.select(1, 1), -1);
}

FfnTensors random_directions(const FfnTensors& offsets, std::span<const double> a, std::uint32_t repetition,
                             std::int64_t block) {
  CounterRandom random =
      analysis::draw(analysis::Purpose::random_direction, repetition, static_cast<std::uint32_t>(block));
  const at::Tensor weights = at::tensor(a, at::kDouble).to(offsets[0].scalar_type());
  FfnTensors directions;
  for (std::size_t t = 0; t < offsets.size(); ++t) {
    at::Tensor signs = at::empty(offsets[t].sizes(), at::kFloat);
    fill_signs(signs, random);
    const std::int64_t size = offsets[t].numel() / offsets[t].size(0);
    const at::Tensor scale = offsets[t].flatten(1).norm(2, 1) / std::sqrt(static_cast<double>(size));
    signs = signs.to(offsets[t].scalar_type()).flatten(1).mul_(scale.unsqueeze(1));
    directions[t] = signs.sub_(at::mv(signs.t(), weights)).view(offsets[t].sizes());
  }
  return directions;
}

VirtualScores::VirtualScores(std::int64_t batches, std::int64_t experts, std::int64_t classes)
    : tokens(cells(batches), 0.0),
      ties(tokens),
      load(cells(batches, experts), 0.0),
      score(load),
      table(cells(experts, classes), 0.0),
      class_tokens(cells(classes), 0.0),
      class_score(table) {}

VirtualScoreSums::VirtualScoreSums(const FusedSet& set, std::int64_t batches, std::int64_t classes)
    : set_(set),
      offsets_(set.whole() ? offsets(set) : FfnTensors{}),
      sums_(batches, set.size(), classes),
      batches_(batches),
      classes_(classes) {}

void VirtualScoreSums::add(const FfnTokens& tokens) {
  const auto n = cells(set_.size()), batch = cells(next_++);
  const at::Tensor scores = direction_scores(tokens, offsets_);
  preferred_.push_back(preferred_experts(scores));
  image_.push_back(tokens.image + images_);
  if (tokens.size() > 0) images_ = image_.back().max().item<std::int64_t>() + 1;
  label_.push_back(tokens.label);
  const auto expert = preferred_.back().accessor<std::int64_t, 1>(),
             label = tokens.label.accessor<std::int64_t, 1>();
  const at::Tensor wide = scores.to(at::kDouble);
  const auto score = wide.accessor<double, 2>();
  for (std::int64_t t = 0; t < tokens.size(); ++t) {
    sums_.class_tokens[cells(label[t])] += 1.0;
    if (expert[t] < 0)
      sums_.ties[batch] += 1.0;
    else
      sums_.load[batch * n + cells(expert[t])] += 1.0;
    for (std::size_t k = 0; k < n; ++k) {
      const double one = score[t][static_cast<std::int64_t>(k)];
      sums_.score[batch * n + k] += one;
      sums_.class_score[k * cells(classes_) + cells(label[t])] += one;
    }
  }
  sums_.tokens[batch] = static_cast<double>(tokens.size());
  const std::int64_t stride = std::max<std::int64_t>(1, (tokens.size() * batches_ - 1) / kSampledTokens + 1);
  // Another start in each batch: a token's place in its image must not decide.
  sampled_.push_back(every_row(tokens, next_ % stride, stride));
}

VirtualScores VirtualScoreSums::finish() const {
  VirtualScores found = sums_;
  for (std::size_t i = 0; i < found.class_score.size(); ++i)
    found.class_score[i] /= found.class_tokens[i % cells(classes_)];
  found.nmi = found.nmi_corrected = std::nan("");
  found.shuffle = found.random = compared(std::nan(""), {});
  if (next_ == 0) return found;
  const std::int64_t experts = set_.size();
  const at::Tensor preferred = at::cat(preferred_), label = at::cat(label_);
  found.table = preference_table(preferred, label, experts, classes_);
  found.nmi = nmi_of(found.table, classes_);
  if (std::isfinite(found.nmi)) {
    const analysis::MutualInformation information =
        analysis::mutual_information(found.table, cells(classes_));
    found.nmi_corrected =
        (information.information - information.bias) / std::sqrt(information.h_rows * information.h_columns);
  }
  found.shuffle = shuffle_null(found.nmi, preferred, at::cat(image_), label, experts, classes_, set_.block);
  found.random = random_null(set_, offsets_, sample(), classes_);
  return found;
}

}  // namespace exfusion
