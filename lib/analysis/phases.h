// Phases of a curve over training, such as gamma_eff over checkpoints: continuous lines in log(step) with 0,
// 1 or 2 breakpoints. This project's proposal, not the paper's procedure.
#pragma once
#include <array>
#include <span>
#include <string>
#include <vector>

namespace exfusion::analysis {

inline constexpr std::size_t kFewestCheckpoints = 8;
inline constexpr int kBreakGrid =
    61;  // where breaks may lie: equal steps of log(step), second to last but one
inline constexpr int kFewestCells = 6;  // between two breaks
inline constexpr double kPhaseLevel = 0.05;

// The least-squares fit with `breaks` breakpoints.
struct PhaseFit {
  std::vector<int> grid_index;      // [breaks]
  std::vector<double> break_steps;  // [breaks]
  std::vector<double> slopes;       // [breaks + 1], per e-fold of the step
  double sse = 0.0;
  double bic = 0.0;  // n log(sse / n) + (2 + 2 breaks) log n
};
// steps > 0 and rising, at least kFewestCheckpoints of them, as many values.
PhaseFit fit_phases(std::span<const double> steps, std::span<const double> values, std::size_t breaks);

struct Phases {
  std::array<PhaseFit, 3> fits;  // by number of breaks
  std::size_t best_by_bic = 0;   // alone it finds breaks in a third of pure noise
  std::array<double, 2> p{};     // of 1 break against 0, and of 2 against 1
  std::size_t claimed = 0;       // breaks, as long as each has p < kPhaseLevel against the next simpler model
  std::string reason;            // not empty: undefined, and why
};
// p: parametric bootstrap of the likelihood ratio n log(sse_simple / sse), noise of the simpler fit.
Phases find_phases(std::span<const double> steps, std::span<const double> values);

}  // namespace exfusion::analysis
