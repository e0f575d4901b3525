#include "analysis/quality.h"

#include <algorithm>
#include <cmath>

namespace exfusion::analysis {
namespace {

std::vector<double> weighted_sums(const std::vector<double>& table, std::size_t columns,
                                  const std::vector<double>& times) {
  if (table.empty()) return {};
  std::vector<double> sums(columns, 0.0);
  for (std::size_t row = 0; row < times.size(); ++row) {
    if (times[row] == 0.0) continue;
    const double* values = table.data() + row * columns;
    for (std::size_t i = 0; i < columns; ++i) sums[i] += times[row] * values[i];
  }
  return sums;
}

// log(sum / n), n the tokens or [M] counts.
Qualities log_means(const std::vector<double>& sums, const std::vector<double>& counts, const char* field) {
  if (sums.empty()) return {{}, std::string(field) + " is not in this trace"};
  std::vector<double> q(sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) {
    if (!(counts[i] > 0.0) || !(sums[i] > 0.0))
      return {{}, std::string(field) + " of expert " + std::to_string(i) + " is 0"};
    q[i] = std::log(sums[i] / counts[i]);
  }
  return {std::move(q), ""};
}

}  // namespace

QualitySums sum_batches(const TraceLayer& layer, std::size_t experts, const std::vector<double>& times) {
  QualitySums sums;
  for (std::size_t b = 0; b < layer.tokens.size(); ++b) sums.tokens += times[b] * layer.tokens[b];
  sums.count = weighted_sums(layer.count, experts, times);
  sums.prob = weighted_sums(layer.sum_prob, experts, times);
  sums.logit = weighted_sums(layer.sum_logit, experts, times);
  sums.logit_sq = weighted_sums(layer.sum_logit_sq, experts, times);
  sums.gate = weighted_sums(layer.sum_gate, experts, times);
  sums.gate_norm = weighted_sums(layer.sum_gate_norm, experts, times);
  return sums;
}

Qualities qualities(const QualitySums& sums, Quality which) {
  switch (which) {
    case Quality::mean_prob:
      return log_means(sums.prob, std::vector<double>(sums.prob.size(), sums.tokens), "sum_prob");
    case Quality::gate_selected:
      return log_means(sums.gate, sums.count, "sum_gate");
    case Quality::gate_norm:
      return log_means(sums.gate_norm, sums.count, "sum_gate_norm");
    case Quality::mean_logit:
      break;
  }
  if (sums.logit.empty()) return {{}, "sum_logit is not in this trace"};
  std::vector<double> q = sums.logit;
  for (double& one : q) one /= sums.tokens;
  return {std::move(q), ""};
}

CentredSample centre_sample(const TraceLayer& layer, std::size_t experts) {
  CentredSample sample;
  sample.tokens.assign(layer.batches(), 0.0);
  sample.squares.assign(layer.batches(), 0.0);
  sample.sum.assign(layer.batches() * experts, 0.0);
  for (std::size_t s = 0; s < layer.sampled(); ++s) {
    const auto batch = static_cast<std::size_t>(layer.batch[s]);
    const float* logits = layer.logits.data() + s * experts;
    double mean = 0.0;
    for (std::size_t i = 0; i < experts; ++i) mean += logits[i];
    mean /= static_cast<double>(experts);
    sample.tokens[batch] += 1.0;
    for (std::size_t i = 0; i < experts; ++i) {
      const double centred = logits[i] - mean;
      sample.sum[batch * experts + i] += centred;
      sample.squares[batch] += centred * centred;
    }
  }
  return sample;
}

std::optional<double> sample_sigma(const CentredSample& sample, std::size_t experts,
                                   const std::vector<double>& times) {
  double tokens = 0.0, squares = 0.0;
  for (std::size_t b = 0; b < times.size(); ++b) {
    tokens += times[b] * sample.tokens[b];
    squares += times[b] * sample.squares[b];
  }
  if (tokens < 2.0) return std::nullopt;
  double within = squares;
  for (const double sum : weighted_sums(sample.sum, experts, times)) within -= sum * sum / tokens;
  // mean over M experts, times M / (M - 1)
  const double variance = within / (tokens - 1.0) / static_cast<double>(experts - 1);
  return std::sqrt(std::max(variance, 0.0));
}

std::optional<double> uncentred_sigma(const QualitySums& sums) {
  if (sums.logit.empty() || sums.logit_sq.empty()) return std::nullopt;
  double variance = 0.0;
  for (std::size_t i = 0; i < sums.logit.size(); ++i) {
    const double mean = sums.logit[i] / sums.tokens;
    variance += std::max(sums.logit_sq[i] / sums.tokens - mean * mean, 0.0);
  }
  return std::sqrt(variance / static_cast<double>(sums.logit.size()));
}

}  // namespace exfusion::analysis
