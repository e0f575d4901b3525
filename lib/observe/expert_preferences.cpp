#include "observe/expert_preferences.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "analysis/draws.h"

namespace exfusion {
namespace {

using analysis::NullComparison;

constexpr std::uint32_t kShuffles = 100;

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
  // Images without tokens have no part in it.
  std::vector<std::int64_t> seen(cells(images), -1), of_image;
  for (std::int64_t t = 0; t < image.size(0); ++t) {
    std::int64_t& place = seen[cells(of_token[t])];
    if (place >= 0) continue;
    place = static_cast<std::int64_t>(of_image.size());
    of_image.push_back(given[t]);
  }
  const at::Tensor shuffled = at::empty_like(label);
  auto one = shuffled.accessor<std::int64_t, 1>();
  std::vector<double> null;
  for (std::uint32_t r = 0; r < kShuffles; ++r) {
    const std::vector<std::int64_t> order = random_permutation(
        static_cast<std::int64_t>(of_image.size()),
        analysis::draw(analysis::Purpose::class_shuffle, r, static_cast<std::uint32_t>(block)));
    for (std::int64_t t = 0; t < image.size(0); ++t)
      one[t] = of_image[cells(order[cells(seen[cells(of_token[t])])])];
    null.push_back(nmi_of(preference_table(preferred, shuffled, experts, classes), classes));
  }
  return compared(measured, null);
}

// Tokens that prefer each expert, [N].
at::Tensor load_of(const at::Tensor& scores) {
  const at::Tensor preferred = preferred_experts(scores);
  return at::bincount(preferred.index({preferred >= 0}), {}, scores.size(1)).to(at::kDouble);
}

void add_to(const at::Tensor& values, double* sums) {
  const at::Tensor wide = values.to(at::kDouble).contiguous();
  for (std::int64_t i = 0; i < wide.numel(); ++i) sums[i] += wide.const_data_ptr<double>()[i];
}

}  // namespace

TokenScores with_sizes(const at::Tensor& scores, const at::Tensor& sizes) {
  const at::Tensor wide = sizes.to(scores.scalar_type()).expand_as(scores);
  return {scores, at::where(wide > 0, scores / wide, at::zeros_like(scores))};
}

at::Tensor preferred_experts(const at::Tensor& scores) {
  if (scores.size(1) < 2) return at::full({scores.size(0)}, -1, at::kLong);
  const auto [values, experts] = scores.topk(2, 1);
  return experts.select(1, 0).masked_fill(values.select(1, 0) == values.select(1, 1), -1);
}

at::Tensor soft_preferences(const at::Tensor& scores) {
  const at::Tensor wide = scores.to(at::kDouble);
  const at::Tensor sd = wide.std(at::OptionalIntArrayRef({1}), /*correction=*/0, /*keepdim=*/true);
  // Equal scores may leave a rounding error of a mean.
  const at::Tensor differ = sd > 1e-14 * wide.abs().amax(1, /*keepdim=*/true);
  return at::where(differ, wide / sd, at::zeros_like(wide)).softmax(1);
}

VirtualScores::VirtualScores(std::int64_t batches, std::int64_t experts, std::int64_t classes)
    : tokens(cells(batches), 0.0),
      ties(tokens),
      load(cells(batches, experts), 0.0),
      soft_load(load),
      unit_load(load),
      score(load),
      table(cells(experts, classes), 0.0),
      class_tokens(cells(classes), 0.0),
      class_score(table),
      random(compared(std::nan(""), {})),
      random_load(cells(experts), std::nan("")),
      random_soft_load(random_load),
      random_unit_load(random_load) {}

void compare_with_random(const TokenScores& measured, const std::vector<TokenScores>& random,
                         const at::Tensor& label, VirtualScores& found) {
  const std::int64_t experts = measured.scores.size(1),
                     classes = static_cast<std::int64_t>(found.class_tokens.size());
  const auto nmi = [&](const at::Tensor& scores) {
    return nmi_of(preference_table(preferred_experts(scores), label, experts, classes), classes);
  };
  std::vector<double> null;
  std::vector<at::Tensor> scores, per_unit;
  for (const TokenScores& one : random) {
    null.push_back(nmi(one.scores));
    scores.push_back(one.scores);
    per_unit.push_back(one.per_unit);
  }
  const at::Tensor all = at::cat(scores);
  const auto parts = [&](const at::Tensor& counts, std::vector<double>& load) {
    load.assign(cells(experts), 0.0);
    add_to(counts / all.size(0), load.data());
  };
  parts(load_of(all), found.random_load);
  parts(soft_preferences(all).sum(0), found.random_soft_load);
  parts(load_of(at::cat(per_unit)), found.random_unit_load);
  found.random = compared(nmi(measured.scores), null);
}

PreferenceSums::PreferenceSums(std::int64_t batches, std::int64_t experts, std::int64_t classes,
                               std::int64_t block)
    : sums_(batches, experts, classes), experts_(experts), classes_(classes), block_(block) {}

void PreferenceSums::add(const TokenScores& of, const at::Tensor& image, const at::Tensor& labels) {
  const auto n = cells(experts_), batch = cells(next_++);
  preferred_.push_back(preferred_experts(of.scores));
  image_.push_back(image + images_);
  if (image.numel() > 0) images_ = image_.back().max().item<std::int64_t>() + 1;
  label_.push_back(labels);
  sums_.tokens[batch] = static_cast<double>(labels.size(0));
  add_to(preferred_.back().eq(-1).sum(), &sums_.ties[batch]);
  add_to(load_of(of.scores), sums_.load.data() + batch * n);
  add_to(soft_preferences(of.scores).sum(0), sums_.soft_load.data() + batch * n);
  add_to(load_of(of.per_unit), sums_.unit_load.data() + batch * n);
  const at::Tensor wide = of.scores.to(at::kDouble);
  add_to(wide.sum(0), sums_.score.data() + batch * n);
  add_to(at::bincount(labels, {}, classes_), sums_.class_tokens.data());
  add_to(at::zeros({classes_, experts_}, at::kDouble).index_add_(0, labels, wide).t(),
         sums_.class_score.data());
}

VirtualScores PreferenceSums::finish() const {
  VirtualScores found = sums_;
  for (std::size_t i = 0; i < found.class_score.size(); ++i)
    found.class_score[i] /= found.class_tokens[i % cells(classes_)];
  found.nmi = found.nmi_corrected = std::nan("");
  found.shuffle = compared(std::nan(""), {});
  if (next_ == 0) return found;
  const at::Tensor preferred = at::cat(preferred_), label = at::cat(label_);
  found.table = preference_table(preferred, label, experts_, classes_);
  found.nmi = nmi_of(found.table, classes_);
  if (std::isfinite(found.nmi)) {
    const analysis::MutualInformation information =
        analysis::mutual_information(found.table, cells(classes_));
    found.nmi_corrected =
        (information.information - information.bias) / std::sqrt(information.h_rows * information.h_columns);
  }
  found.shuffle = shuffle_null(found.nmi, preferred, at::cat(image_), label, experts_, classes_, block_);
  return found;
}

at::Tensor random_signs(at::IntArrayRef sizes, CounterRandom& random) {
  at::Tensor signs = at::empty(sizes, at::kFloat);
  auto* sign = signs.mutable_data_ptr<float>();
  for (std::int64_t i = 0, end = signs.numel(); i < end; i += 32) {
    const std::uint32_t bits = random.bits(),
                        count = static_cast<std::uint32_t>(std::min<std::int64_t>(32, end - i));
    for (std::uint32_t j = 0; j < count; ++j)
      sign[i + j] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(1.0f) | (bits >> j << 31));
  }
  return signs;
}

}  // namespace exfusion
