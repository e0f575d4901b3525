#include "analysis/multi_type.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/congestion.h"
#include "analysis/draws.h"
#include "analysis/held_out.h"
#include "analysis/quality.h"

namespace exfusion::analysis {
namespace {

constexpr int kRounds = 30;                 // of k-means
constexpr std::size_t kTokensPerType = 16;  // fewer make a type's mean logits noise
constexpr std::size_t kMostSampled = 4096;
constexpr std::size_t kMostValues = 64;  // of a hidden state; more are projected at random onto so many

double squared_distance(const float* a, const float* b, std::size_t size) {
  float sum = 0.0f;
  for (std::size_t d = 0; d < size; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
  return static_cast<double>(sum);
}

// Centres drawn in proportion to the squared distance from those there are (Arthur and Vassilvitskii 2007).
std::vector<float> spread_centres(const std::vector<float>& points, std::size_t size, std::size_t types,
                                  CounterRandom random) {
  const std::size_t count = points.size() / size;
  std::vector<double> distance(count, INFINITY);
  std::vector<float> centres;
  std::size_t chosen = random.below(static_cast<std::uint32_t>(count));
  for (std::size_t type = 0; type < types; ++type) {
    const float* centre = points.data() + chosen * size;
    centres.insert(centres.end(), centre, centre + size);
    double total = 0.0;
    for (std::size_t n = 0; n < count; ++n) {
      distance[n] = std::min(distance[n], squared_distance(points.data() + n * size, centre, size));
      total += distance[n];
    }
    double rest = random.uniform() * total;
    for (chosen = 0; chosen + 1 < count && rest >= distance[chosen]; ++chosen) rest -= distance[chosen];
  }
  return centres;
}

// Sampled tokens of even batches, evenly spaced, at most kMostSampled, with LayerNormed hidden states,
// projected at random where they are long, which keeps distances (Johnson and Lindenstrauss 1984).
struct HeldInSample {
  std::size_t size = 0;              // of a hidden state
  std::vector<float> hidden;         // [n, D]
  std::vector<const float*> logits;  // [n] rows of M
};

// Appends the values times `projection` [values, kMostValues], or the values themselves where it is empty.
void add_projected(const std::vector<float>& values, const std::vector<float>& projection,
                   std::vector<float>& to) {
  if (projection.empty()) {
    to.insert(to.end(), values.begin(), values.end());
    return;
  }
  to.resize(to.size() + kMostValues, 0.0f);
  float* row = to.data() + to.size() - kMostValues;
  for (std::size_t d = 0; d < values.size(); ++d)
    for (std::size_t v = 0; v < kMostValues; ++v) row[v] += values[d] * projection[d * kMostValues + v];
}

HeldInSample held_in_sample(const TraceLayer& layer, std::size_t experts) {
  std::vector<std::size_t> rows;
  for (std::size_t s = 0; s < layer.sampled(); ++s)
    if (layer.batch[s] % 2 == 0) rows.push_back(s);
  const std::size_t stride = (rows.size() + kMostSampled - 1) / kMostSampled, size = layer.hidden_size();
  std::vector<float> projection(size > kMostValues ? size * kMostValues : 0), normed(size);
  CounterRandom random = draw(Purpose::token_types, 0, static_cast<std::uint32_t>(layer.layer));
  for (float& one : projection) one = static_cast<float>(random.normal());
  HeldInSample sample{std::min(size, kMostValues)};
  for (std::size_t r = 0; r < rows.size(); r += stride) {
    const float* hidden = layer.hidden.data() + rows[r] * size;
    const double mean = std::reduce(hidden, hidden + size, 0.0) / static_cast<double>(size);
    double squares = 0.0;
    for (std::size_t d = 0; d < size; ++d) squares += (hidden[d] - mean) * (hidden[d] - mean);
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(size) + 1e-5);
    for (std::size_t d = 0; d < size; ++d) normed[d] = static_cast<float>((hidden[d] - mean) * scale);
    add_projected(normed, projection, sample.hidden);
    sample.logits.push_back(layer.logits.data() + rows[r] * experts);
  }
  return sample;
}

// What the fit of one partition starts from and what it predicts.
struct TypeLoads {
  std::vector<double> fitted_to, held_out;  // shares of the even and the odd batches
};

// Minimises L1 to the even loads over gamma >= 0; the error on the odd ones.
struct Fit {
  double gamma = 0.0, l1 = 0.0;
};

Fit fit_types(const HeldInSample& sample, const std::vector<std::uint32_t>& type, std::size_t types,
              const TypeLoads& loads) {
  const std::size_t experts = loads.fitted_to.size();
  std::vector<double> q(types * experts, 0.0), weight(types, 0.0);
  for (std::size_t n = 0; n < type.size(); ++n) {
    weight[type[n]] += 1.0;
    for (std::size_t i = 0; i < experts; ++i) q[type[n] * experts + i] += sample.logits[n][i];
  }
  for (std::size_t t = 0; t < types; ++t) {
    for (std::size_t i = 0; i < experts && weight[t] > 0.0; ++i) q[t * experts + i] /= weight[t];
    weight[t] /= static_cast<double>(type.size());
  }
  const auto distance = [&](double gamma) {
    return l1_distance(multi_type_shares(q, weight, gamma), loads.fitted_to);
  };
  const double high = 20.0 * static_cast<double>(experts);
  const double gamma = scan_minimum(0.0, high, 40, distance);
  return {gamma, l1_distance(multi_type_shares(q, weight, gamma), loads.held_out)};
}

std::vector<std::uint32_t> shuffled(std::vector<std::uint32_t> type, std::uint32_t layer) {
  const auto order =
      random_permutation(static_cast<std::int64_t>(type.size()), draw(Purpose::random_partition, 0, layer));
  std::vector<std::uint32_t> partition(type.size());
  for (std::size_t n = 0; n < type.size(); ++n) partition[n] = type[static_cast<std::size_t>(order[n])];
  return partition;
}

}  // namespace

Clusters k_means(const std::vector<float>& points, std::size_t size, std::size_t types, std::uint32_t layer) {
  const std::size_t count = points.size() / size;
  Clusters found{spread_centres(points, size, types,
                                draw(Purpose::token_types, static_cast<std::uint32_t>(types), layer)),
                 std::vector<std::uint32_t>(count, 0)};
  for (int round = 0; round < kRounds; ++round) {
    bool moved = round == 0;
    std::vector<double> sum(types * size, 0.0), members(types, 0.0);
    for (std::size_t n = 0; n < count; ++n) {
      const float* point = points.data() + n * size;
      std::uint32_t nearest = 0;
      double least = INFINITY;
      for (std::uint32_t t = 0; t < types; ++t) {
        const double distance = squared_distance(point, found.centres.data() + t * size, size);
        if (distance < least) {
          least = distance;
          nearest = t;
        }
      }
      moved |= found.type[n] != nearest;
      found.type[n] = nearest;
      members[nearest] += 1.0;
      for (std::size_t d = 0; d < size; ++d) sum[nearest * size + d] += point[d];
    }
    if (!moved) break;
    for (std::size_t t = 0; t < types; ++t) {
      for (std::size_t d = 0; d < size && members[t] > 0.0; ++d)
        found.centres[t * size + d] = static_cast<float>(sum[t * size + d] / members[t]);
    }
  }
  return found;
}

MultiTypeTable multi_type(const TraceLayer& layer, std::size_t experts) {
  MultiTypeTable table;
  if (layer.hidden.empty()) {
    table.l1 = undefined("hidden states are not in this trace");
    return table;
  }
  const HeldInSample sample = held_in_sample(layer, experts);
  const Resample halves = every_batch(layer.batches());
  if (layer.batches() < 2 || sample.logits.size() < kHeadlineTypes * kTokensPerType) {
    table.l1 = undefined("fewer than 128 sampled tokens in the even batches, or a single batch");
    return table;
  }
  const TypeLoads loads{raw_shares(sum_batches(layer, experts, halves.even).count),
                        raw_shares(sum_batches(layer, experts, halves.odd).count)};
  const auto number = static_cast<std::uint32_t>(layer.layer);
  const Fit single = fit_types(sample, std::vector<std::uint32_t>(sample.logits.size(), 0), 1, loads);
  for (const std::size_t types : kTypeCounts) {
    if (sample.logits.size() < types * kTokensPerType) break;
    const Clusters clusters = k_means(sample.hidden, sample.size, types, number);
    const Fit fit = fit_types(sample, clusters.type, types, loads);
    const Fit random = fit_types(sample, shuffled(clusters.type, number), types, loads);
    table.rows.push_back({types, fit.gamma, fit.l1, single.l1, random.l1});
    if (types == kHeadlineTypes) table.l1 = {fit.l1, ""};
  }
  return table;
}

}  // namespace exfusion::analysis
