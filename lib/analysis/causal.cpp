#include "analysis/causal.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "analysis/draws.h"

namespace exfusion::analysis {
namespace {

// [B]: sums over the classes of each batch.
std::vector<double> by_batch(const HeldOutImages& held_out, const std::vector<double>& table) {
  std::vector<double> sums(held_out.batches, 0.0);
  for (std::size_t i = 0; i < table.size(); ++i) sums[i / held_out.classes] += table[i];
  return sums;
}

double weighted_mean(const std::vector<double>& sums, const std::vector<double>& images,
                     const std::vector<double>& times) {
  return std::inner_product(sums.begin(), sums.end(), times.begin(), 0.0) /
         std::inner_product(images.begin(), images.end(), times.begin(), 0.0);
}

std::vector<double> by_class(const HeldOutImages& held_out, const std::vector<double>& table) {
  std::vector<double> means(held_out.classes);
  for (std::size_t c = 0; c < held_out.classes; ++c) {
    double sum = 0.0, images = 0.0;
    for (std::size_t b = 0; b < held_out.batches; ++b) {
      sum += table[b * held_out.classes + c];
      images += held_out.images[b * held_out.classes + c];
    }
    means[c] = sum / images;  // 0 / 0: NaN
  }
  return means;
}

const char* const kFewBatches = "fewer than 4 batches";

// Resampled means of tables [B, C]: [kResamples] each, or nothing with too few batches.
std::vector<std::vector<double>> resampled_means(const HeldOutImages& held_out,
                                                 const std::vector<const std::vector<double>*>& tables) {
  std::vector<std::vector<double>> drawn(tables.size());
  if (held_out.batches < kFewestBatches) return drawn;
  const std::vector<double> images = by_batch(held_out, held_out.images);
  std::vector<std::vector<double>> sums;
  for (const auto* table : tables) sums.push_back(by_batch(held_out, *table));
  for (std::uint32_t r = 0; r < kResamples; ++r) {
    const std::vector<double> times = resample_batches(held_out.batches, r).all;
    for (std::size_t i = 0; i < sums.size(); ++i) drawn[i].push_back(weighted_mean(sums[i], images, times));
  }
  return drawn;
}

Interval interval_of(const HeldOutImages& held_out, std::vector<double> drawn) {
  if (held_out.batches < kFewestBatches) return {0.0, 0.0, kFewBatches};
  return percentile_interval(std::move(drawn), expanded_tail(held_out.batches));
}

std::vector<double> ranks(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> rank(values.size());
  for (std::size_t i = 0; i < order.size();) {
    std::size_t end = i + 1;
    while (end < order.size() && values[order[end]] == values[order[i]]) ++end;
    for (std::size_t j = i; j < end; ++j) rank[order[j]] = 0.5 * static_cast<double>(i + end - 1);
    i = end;
  }
  return rank;
}

}  // namespace

MeanChange mean_change(const HeldOutImages& held_out, const ImageSums& change) {
  const std::vector<double> all(held_out.batches, 1.0), images = by_batch(held_out, held_out.images);
  MeanChange found{weighted_mean(by_batch(held_out, change.loss), images, all),
                   weighted_mean(by_batch(held_out, change.correct), images, all)};
  auto drawn = resampled_means(held_out, {&change.loss, &change.correct});
  found.loss_ci = interval_of(held_out, std::move(drawn[0]));
  found.accuracy_ci = interval_of(held_out, std::move(drawn[1]));
  found.loss_by_class = by_class(held_out, change.loss);
  found.accuracy_by_class = by_class(held_out, change.correct);
  return found;
}

double mean_loss(const HeldOutImages& held_out, const ImageSums& change, const std::vector<double>& times) {
  return weighted_mean(by_batch(held_out, change.loss), by_batch(held_out, held_out.images), times);
}

BraessShare braess_share(const HeldOutImages& held_out, const std::vector<ImageSums>& left_out) {
  BraessShare found;
  std::vector<const std::vector<double>*> tables;
  for (const ImageSums& one : left_out) {
    if (!one.loss.empty()) tables.push_back(&one.loss);
  }
  const auto experts = static_cast<double>(tables.size());
  const std::vector<double> all(held_out.batches, 1.0), images = by_batch(held_out, held_out.images);
  for (const auto* table : tables)
    found.share += (weighted_mean(by_batch(held_out, *table), images, all) < 0.0) / experts;
  const auto drawn = resampled_means(held_out, tables);
  if (held_out.batches >= kFewestBatches) found.drawn.assign(kResamples, 0.0);
  for (const auto& expert : drawn) {
    for (std::size_t r = 0; r < expert.size(); ++r) found.drawn[r] += (expert[r] < 0.0) / experts;
    const Interval interval = interval_of(held_out, expert);
    found.certain += interval.defined() && interval.high < 0.0;
  }
  found.share_ci = interval_of(held_out, found.drawn);
  return found;
}

namespace {

// Of expert k's class means: those of its preferred classes less the others. nullopt if all or none are.
std::optional<double> contrast_of(std::span<const double> means, const std::vector<bool>& preferred) {
  double sums[2] = {}, counts[2] = {};
  for (std::size_t c = 0; c < means.size(); ++c) {
    if (std::isnan(means[c])) continue;
    sums[preferred[c]] += means[c];
    counts[preferred[c]] += 1.0;
  }
  if (counts[0] == 0.0 || counts[1] == 0.0) return std::nullopt;
  return sums[1] / counts[1] - sums[0] / counts[0];
}

// [N][C]: whether the share of the class's choices that fall on the expert is above its mean over classes.
std::vector<std::vector<bool>> preferred_classes(std::span<const double> preference, std::size_t classes,
                                                 std::size_t experts) {
  std::vector<double> share(preference.begin(), preference.end()), mean(experts, 0.0);
  for (std::size_t c = 0; c < classes; ++c) {
    double sum = 0.0;
    for (std::size_t k = 0; k < experts; ++k) sum += share[c * experts + k];
    for (std::size_t k = 0; k < experts && sum > 0.0; ++k)
      mean[k] += (share[c * experts + k] /= sum) / static_cast<double>(classes);
  }
  std::vector<std::vector<bool>> preferred(experts, std::vector<bool>(classes));
  for (std::size_t k = 0; k < experts; ++k) {
    for (std::size_t c = 0; c < classes; ++c)
      preferred[k][c] = share[c * experts + k] > mean[k] * (1.0 + 1e-12);
  }
  return preferred;
}

InteractionContrast with_p(InteractionContrast of) {
  const double least = of.contrast.value - 1e-12 * std::abs(of.contrast.value);
  const auto hits = std::ranges::count_if(of.drawn, [&](double one) { return one >= least; });
  of.p = {static_cast<double>(1 + hits) / static_cast<double>(1 + of.drawn.size()), ""};
  return of;
}

}  // namespace

InteractionContrast interaction_contrast(const HeldOutImages& held_out,
                                         const std::vector<ImageSums>& left_out,
                                         std::span<const double> preference, std::uint32_t layer) {
  const auto none = [](const char* why) { return InteractionContrast{undefined(why), undefined(why), {}}; };
  const std::vector<std::vector<bool>> preferred =
      preferred_classes(preference, held_out.classes, left_out.size());
  // Only experts with a preference, which then is someone's, whoever it is given to.
  std::vector<std::vector<double>> means;
  std::vector<const std::vector<bool>*> sets;
  for (std::size_t k = 0; k < left_out.size(); ++k) {
    if (left_out[k].loss.empty()) continue;
    std::vector<double> classes = by_class(held_out, left_out[k].loss);
    if (!contrast_of(classes, preferred[k])) continue;
    means.push_back(std::move(classes));
    sets.push_back(&preferred[k]);
  }
  if (means.size() < 2) return none("fewer than two experts prefer some classes to others");
  const auto mean_of = [&](const std::vector<std::int64_t>& order) {
    double sum = 0.0;
    for (std::size_t k = 0; k < means.size(); ++k)
      sum += contrast_of(means[k], *sets[static_cast<std::size_t>(order[k])]).value_or(0.0);
    return sum / static_cast<double>(means.size());
  };
  std::vector<std::int64_t> own(means.size());
  std::iota(own.begin(), own.end(), 0);
  InteractionContrast found{{mean_of(own), ""}};
  for (std::uint32_t r = 0; r < kPermutations; ++r)
    found.drawn.push_back(mean_of(random_permutation(static_cast<std::int64_t>(means.size()),
                                                     draw(Purpose::preference_swap, r, layer))));
  return with_p(std::move(found));
}

InteractionContrast mean_contrast(const std::vector<InteractionContrast>& layers) {
  InteractionContrast mean{{0.0, ""}, {}, std::vector<double>(kPermutations, 0.0)};
  double count = 0.0;
  for (const InteractionContrast& layer : layers) count += layer.contrast.defined();
  if (count == 0.0) return {undefined("undefined in every layer"), undefined("undefined in every layer"), {}};
  for (const InteractionContrast& layer : layers) {
    if (!layer.contrast.defined()) continue;
    mean.contrast.value += layer.contrast.value / count;
    for (std::size_t r = 0; r < mean.drawn.size(); ++r) mean.drawn[r] += layer.drawn[r] / count;
  }
  return with_p(std::move(mean));
}

double spearman(std::span<const double> a, std::span<const double> b) {
  const std::vector<double> x = ranks(a), y = ranks(b);
  const double mean = 0.5 * (static_cast<double>(x.size()) - 1.0);
  double xy = 0.0, xx = 0.0, yy = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xy += (x[i] - mean) * (y[i] - mean);
    xx += (x[i] - mean) * (x[i] - mean);
    yy += (y[i] - mean) * (y[i] - mean);
  }
  return xx > 0.0 && yy > 0.0 ? xy / std::sqrt(xx * yy) : std::nan("");
}

std::vector<RankCorrelation> rank_correlations(const HeldOutImages& held_out,
                                               const std::vector<ImageSums>& left_out,
                                               const ScoresOfBatches& scores) {
  std::vector<std::size_t> experts;
  std::vector<std::vector<double>> losses;  // [experts][B]
  for (std::size_t k = 0; k < left_out.size(); ++k) {
    if (left_out[k].loss.empty()) continue;
    experts.push_back(k);
    losses.push_back(by_batch(held_out, left_out[k].loss));
  }
  const std::vector<double> images = by_batch(held_out, held_out.images);
  const auto rhos_of = [&](const Resample& times) {
    std::vector<double> loss, rhos, chosen(experts.size());
    for (const auto& one : losses) loss.push_back(weighted_mean(one, images, times.odd));
    for (const std::vector<double>& score : scores(times.even)) {
      for (std::size_t i = 0; i < experts.size(); ++i) chosen[i] = score[experts[i]];
      rhos.push_back(spearman(chosen, loss));
    }
    return rhos;
  };
  std::vector<RankCorrelation> found;
  for (const double rho : rhos_of(every_batch(held_out.batches))) {
    const Quantity one = held_out.batches < 2
                             ? undefined("fewer than 2 batches")
                             : quantity(rho, "all experts score the same, or their removal costs the same");
    found.push_back({one, {0.0, 0.0, one.reason}, {}});
  }
  for (std::uint32_t r = 0; r < kResamples && held_out.batches >= kFewestBatches; ++r) {
    const std::vector<double> rhos = rhos_of(resample_batches(held_out.batches, r));
    for (std::size_t i = 0; i < found.size(); ++i) found[i].drawn.push_back(rhos[i]);
  }
  for (RankCorrelation& one : found) {
    if (one.rho.defined()) one.ci = interval_of(held_out, one.drawn);
  }
  return found;
}

RankCorrelation mean_correlation(const std::vector<RankCorrelation>& layers, std::size_t batches) {
  RankCorrelation mean{{0.0, ""}};
  double count = 0.0;
  for (const RankCorrelation& layer : layers) count += layer.rho.defined();
  const std::string never = "undefined in every layer";
  if (count == 0.0) return {undefined(never), {0.0, 0.0, never}, {}};
  if (batches >= kFewestBatches) mean.drawn.assign(kResamples, 0.0);
  for (const RankCorrelation& layer : layers) {
    if (!layer.rho.defined()) continue;
    mean.rho.value += layer.rho.value / count;
    for (std::size_t r = 0; r < mean.drawn.size(); ++r) mean.drawn[r] += layer.drawn[r] / count;
  }
  mean.ci = mean.drawn.empty() ? Interval{0.0, 0.0, kFewBatches}
                               : percentile_interval(mean.drawn, expanded_tail(batches));
  return mean;
}

}  // namespace exfusion::analysis
