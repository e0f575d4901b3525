// The bias probe: how much of the load a shifted logit moves, on a sample of tokens. No fit and no scale of
// quality in it; the router is frozen, so balancing that training would do is not in it either.
#pragma once
#include <optional>

#include "analysis/trace.h"

namespace exfusion::analysis {

inline constexpr double kProbeShift = 0.3;  // on the logit, both ways

// T = 1 / mean over experts j and both signs of [logodds(m_j shifted) - logodds(m_j)] / shift with m_j the
// share of slots, selection bias kept; gamma = M (T - 1). Experts that get or keep no token are left out;
// nullopt without a sample, for K >= M, or if less than half of the experts are left.
std::optional<double> probe_gamma(const TraceLayer& layer, std::size_t experts, std::size_t top_k,
                                  RouterScores scores);

// The K experts of each sampled token by score plus selection bias: [S, K].
std::vector<std::uint32_t> sampled_routes(const TraceLayer& layer, std::size_t experts, std::size_t top_k,
                                          RouterScores scores);

}  // namespace exfusion::analysis
