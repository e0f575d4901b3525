#include "analysis/scores.h"

#include <algorithm>
#include <numeric>

namespace exfusion::analysis {
namespace {

struct Published {
  int b, alpha, beta;
  const char* name;
};
constexpr Published kPublished[] = {
    {0, 0, 0, "frequency"},     {0, 1, 0, "seer"},         {0, 0, 1, "ean"},
    {1, 1, 1, "reap"},          {1, 0, 1, "man"},          {1, 0, 2, "msan"},
    {0, 1, 1, "gate_norm"},     {0, 2, 2, "gate_norm_sq"},  // the task-specific pair
    {1, 2, 2, "hope_diagonal"},
};

std::string score_name(int b, int alpha, int beta) {
  for (const Published& one : kPublished) {
    if (one.b == b && one.alpha == alpha && one.beta == beta) return one.name;
  }
  return "s_" + std::to_string(b) + std::to_string(alpha) + std::to_string(beta);
}

}  // namespace

Accumulators accumulate(const TraceLayer& layer, std::size_t experts) {
  const auto sums = [&](const std::vector<double>& field) {
    return field.empty() ? std::vector<double>() : column_sums(field, experts);
  };
  return {sums(layer.count),       sums(layer.sum_gate),      sums(layer.sum_norm),
          sums(layer.sum_norm_sq), sums(layer.sum_gate_norm), sums(layer.sum_gate_norm_sq),
          sums(layer.sum_rsd),     sums(layer.sum_taylor)};
}

Score expert_score(const Accumulators& of, int b, int alpha, int beta) {
  struct Source {
    int alpha, beta;
    const std::vector<double>& sums;
    const char* field;
  };
  const Source sources[] = {{0, 0, of.n, "count"},          {1, 0, of.g1, "sum_gate"},
                            {0, 1, of.a1, "sum_norm"},      {0, 2, of.a2, "sum_norm_sq"},
                            {1, 1, of.ga, "sum_gate_norm"}, {2, 2, of.ga2, "sum_gate_norm_sq"}};
  Score score{score_name(b, alpha, beta), b, alpha, beta, {}, "the format has no such sum"};
  for (const Source& source : sources) {
    if (source.alpha != alpha || source.beta != beta) continue;
    score.values = source.sums;
    score.reason = source.sums.empty() ? std::string(source.field) + " is not in this trace" : "";
  }
  for (std::size_t i = 0; i < score.values.size() && b == 1; ++i)
    score.values[i] = of.n[i] > 0.0 ? score.values[i] / of.n[i] : 0.0;
  return score;
}

std::vector<Score> expert_scores(const Accumulators& of) {
  std::vector<Score> scores;
  for (const int b : {0, 1})
    for (const int alpha : {0, 1, 2})
      for (const int beta : {0, 1, 2}) scores.push_back(expert_score(of, b, alpha, beta));
  scores.push_back({"rsd", -1, -1, -1, of.r, of.r.empty() ? "sum_rsd is not in this trace" : ""});
  scores.push_back({"taylor", -1, -1, -1, of.t1, of.t1.empty() ? "sum_taylor is not in this trace" : ""});
  return scores;
}

std::vector<std::size_t> prune_order(const std::vector<double>& values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t c) { return values[a] < values[c]; });
  return order;
}

}  // namespace exfusion::analysis
