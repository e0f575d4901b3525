// Which experts of a mixture remain, by a score of each.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace exfusion {

// By layer, for experts 0, 1, ...: what is lowest is pruned first.
using ScoresByLayer = std::map<std::int64_t, std::vector<double>>;
// By layer: the experts that remain, ascending.
using KeptExperts = std::map<std::int64_t, std::vector<std::int64_t>>;

// How many of `experts` remain in every layer: keep experts, rounded up. Throws UsageError for a `keep`
// outside of (0, 1], and for one that leaves fewer experts than a token selects.
std::int64_t kept_number(double keep, std::int64_t experts, std::int64_t top_k);

// Throws FormatError unless the scores are those of `layers`, with `experts` each. `source` is for messages.
void expect_scores_of(const ScoresByLayer& scores, const std::vector<std::int64_t>& layers,
                      std::int64_t experts, const std::string& source);

// In every layer the `number` experts with the highest scores; of equal ones the higher numbers remain.
KeptExperts kept_experts(const ScoresByLayer& scores, std::int64_t number);

}  // namespace exfusion
