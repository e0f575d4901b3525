#include "analysis/phases.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/draws.h"

namespace exfusion::analysis {
namespace {

constexpr std::uint32_t kNoiseDraws = 499;
constexpr double kSingular = 1e-10;  // of a 2x2 determinant, relative

// What fits of all values over the same steps share. A hinge is max(0, x - u) for each u of the grid;
// `rest` is what a constant and x leave of it, so that a fit of hinges to the rest of the values is all that
// a break adds to a straight line.
struct Basis {
  std::vector<double> x;
  std::vector<double> grid;
  std::vector<std::vector<double>> rest;      // [grid][n]
  std::vector<std::vector<double>> products;  // [grid][grid] of rests
};

double dot(std::span<const double> a, std::span<const double> b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// Intercept at the mean of x, and slope.
std::pair<double, double> line(const std::vector<double>& x, std::span<const double> y) {
  const double n = static_cast<double>(x.size());
  const double mean_x = std::reduce(x.begin(), x.end()) / n, mean_y = std::reduce(y.begin(), y.end()) / n;
  double xy = 0.0, xx = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xy += (x[i] - mean_x) * (y[i] - mean_y);
    xx += (x[i] - mean_x) * (x[i] - mean_x);
  }
  return {mean_y - xy / xx * mean_x, xy / xx};
}

std::vector<double> without_line(const std::vector<double>& x, std::span<const double> y) {
  const auto [intercept, slope] = line(x, y);
  std::vector<double> rest(y.begin(), y.end());
  for (std::size_t i = 0; i < x.size(); ++i) rest[i] -= intercept + slope * x[i];
  return rest;
}

std::vector<double> hinge(const std::vector<double>& x, double u) {
  std::vector<double> values(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) values[i] = std::max(0.0, x[i] - u);
  return values;
}

Basis make_basis(std::span<const double> steps) {
  Basis basis;
  for (const double step : steps) basis.x.push_back(std::log(step));
  const double first = basis.x[1], last = basis.x[basis.x.size() - 2];
  for (int g = 0; g < kBreakGrid; ++g) {
    basis.grid.push_back(first + (last - first) * g / (kBreakGrid - 1));
    basis.rest.push_back(without_line(basis.x, hinge(basis.x, basis.grid.back())));
  }
  for (const auto& a : basis.rest) {
    basis.products.emplace_back();
    for (const auto& b : basis.rest) basis.products.back().push_back(dot(a, b));
  }
  return basis;
}

// The best hinges for the rest of some values: where, their coefficients and what is left.
struct HingeFit {
  std::vector<int> at;
  std::vector<double> coefficients;
  double sse = 0.0;
};

HingeFit best_hinges(const Basis& basis, std::span<const double> rest, std::size_t breaks) {
  const double straight = dot(rest, rest);
  HingeFit best{{}, {}, straight};
  if (breaks == 0) return best;
  best.sse = INFINITY;
  std::vector<double> c;
  for (const auto& one : basis.rest) c.push_back(dot(one, rest));
  for (int u = 0; u < kBreakGrid; ++u) {
    const auto i = static_cast<std::size_t>(u);
    const double uu = basis.products[i][i];
    if (breaks == 1 && uu > 0.0 && straight - c[i] * c[i] / uu < best.sse)
      best = {{u}, {c[i] / uu}, straight - c[i] * c[i] / uu};
    for (int v = u + kFewestCells; v < kBreakGrid && breaks == 2; ++v) {
      const auto j = static_cast<std::size_t>(v);
      const double vv = basis.products[j][j], uv = basis.products[i][j], determinant = uu * vv - uv * uv;
      if (!(determinant > kSingular * uu * vv)) continue;
      const double at_u = (vv * c[i] - uv * c[j]) / determinant, at_v = (uu * c[j] - uv * c[i]) / determinant;
      const double sse = straight - at_u * c[i] - at_v * c[j];
      if (sse < best.sse) best = {{u, v}, {at_u, at_v}, sse};
    }
  }
  best.sse = std::max(best.sse, 0.0);
  return best;
}

PhaseFit fit_on(const Basis& basis, std::span<const double> values, std::size_t breaks,
                std::vector<double>* fitted) {
  const HingeFit hinges = best_hinges(basis, without_line(basis.x, values), breaks);
  std::vector<double> straight(values.begin(), values.end());
  for (std::size_t b = 0; b < breaks; ++b) {
    const std::vector<double> one = hinge(basis.x, basis.grid[static_cast<std::size_t>(hinges.at[b])]);
    for (std::size_t i = 0; i < one.size(); ++i) straight[i] -= hinges.coefficients[b] * one[i];
  }
  const auto [intercept, slope] = line(basis.x, straight);
  PhaseFit fit{hinges.at, {}, {slope}};
  for (std::size_t b = 0; b < breaks; ++b) {
    fit.break_steps.push_back(std::exp(basis.grid[static_cast<std::size_t>(hinges.at[b])]));
    fit.slopes.push_back(fit.slopes.back() + hinges.coefficients[b]);
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double left = straight[i] - intercept - slope * basis.x[i];
    fit.sse += left * left;
    if (fitted) fitted->push_back(values[i] - left);
  }
  const double n = static_cast<double>(values.size());
  fit.bic = n * std::log(fit.sse / n) + static_cast<double>(2 + 2 * breaks) * std::log(n);
  return fit;
}

// How often the simpler fit plus normal noise gains as much from one more break as the values did.
double break_p(const Basis& basis, std::span<const double> values, std::size_t simpler) {
  std::vector<double> fitted;
  const double before = fit_on(basis, values, simpler, &fitted).sse;
  const double after = fit_on(basis, values, simpler + 1, nullptr).sse;
  const double n = static_cast<double>(values.size());
  const double sd = std::sqrt(before / (n - 2.0 - 2.0 * static_cast<double>(simpler)));
  std::uint32_t hits = 0;
  for (std::uint32_t r = 0; r < kNoiseDraws; ++r) {
    CounterRandom random = draw(Purpose::phase_noise, r, static_cast<std::uint32_t>(simpler));
    std::vector<double> drawn = fitted;
    for (double& one : drawn) one += sd * random.normal();
    const std::vector<double> rest = without_line(basis.x, drawn);
    const double ratio = best_hinges(basis, rest, simpler).sse / best_hinges(basis, rest, simpler + 1).sse;
    hits += ratio >= before / after;
  }
  return static_cast<double>(1 + hits) / static_cast<double>(1 + kNoiseDraws);
}

}  // namespace

PhaseFit fit_phases(std::span<const double> steps, std::span<const double> values, std::size_t breaks) {
  return fit_on(make_basis(steps), values, breaks, nullptr);
}

Phases find_phases(std::span<const double> steps, std::span<const double> values) {
  Phases found;
  if (steps.size() < kFewestCheckpoints) {
    found.reason = "fewer than 8 checkpoints";
    return found;
  }
  const Basis basis = make_basis(steps);
  for (std::size_t breaks = 0; breaks < 3; ++breaks) {
    found.fits[breaks] = fit_on(basis, values, breaks, nullptr);
    if (found.fits[breaks].bic < found.fits[found.best_by_bic].bic) found.best_by_bic = breaks;
  }
  if (!(found.fits[0].sse > 0.0)) {
    found.reason = "the values do not vary";
    return found;
  }
  found.p = {break_p(basis, values, 0), break_p(basis, values, 1)};
  while (found.claimed < 2 && found.p[found.claimed] < kPhaseLevel) ++found.claimed;
  return found;
}

}  // namespace exfusion::analysis
