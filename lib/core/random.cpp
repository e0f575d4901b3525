#include "core/random.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace exfusion {

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t right = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<std::uint32_t>(right >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(right),
        static_cast<std::uint32_t>(left >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(left)};
    key[0] += 0x9E3779B9;  // golden ratio
    key[1] += 0xBB67AE85;  // sqrt(3) - 1
  }
  return counter;
}

CounterRandom::CounterRandom(std::uint64_t seed, Draw what, std::uint32_t epoch, std::uint32_t sample,
                             std::uint32_t layer)
    : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
      counter_{0, sample, epoch, static_cast<std::uint32_t>(what) << 24 | layer} {
  if (layer >= 1u << 24) throw std::invalid_argument("CounterRandom: layer must be below 2^24");
}

std::uint32_t CounterRandom::bits() {
  if (used_ == 4) {
    block_ = philox4x32(counter_, key_);
    ++counter_[0];
    used_ = 0;
  }
  return block_[static_cast<std::size_t>(used_++)];
}

double CounterRandom::uniform() {
  const std::uint64_t high = bits() >> 5;
  const std::uint64_t low = bits() >> 6;
  return static_cast<double>(high << 26 | low) * 0x1p-53;
}

double CounterRandom::uniform(double low, double high) {
  const double value = low + (high - low) * uniform();
  return value < high ? value : std::nextafter(high, low);  // the sum may round up to `high`
}

double CounterRandom::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

// The logarithm of a Gamma(shape, 1) variate (Marsaglia and Tsang, ACM TOMS 2000). Below shape 1 it is that
// of shape + 1 times U^(1/shape), which underflows for small shapes: hence the logarithm.
double CounterRandom::log_gamma_draw(double shape) {
  if (shape < 1.0) {
    const double boost = std::log(1.0 - uniform()) / shape;
    return log_gamma_draw(shape + 1.0) + boost;
  }
  const double d = shape - 1.0 / 3.0;
  const double c = 1.0 / std::sqrt(9.0 * d);
  while (true) {
    const double x = normal();
    const double root = 1.0 + c * x;
    if (root <= 0.0) continue;
    const double v = root * root * root;
    if (std::log(1.0 - uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return std::log(d * v);
  }
}

double CounterRandom::beta(double a, double b) {
  if (!(a > 0.0 && b > 0.0)) throw std::invalid_argument("CounterRandom::beta: a and b must be positive");
  const double first = log_gamma_draw(a);
  const double second = log_gamma_draw(b);
  return 1.0 / (1.0 + std::exp(second - first));
}

// Gamma draws over their sum, from their logarithms: small alpha underflow otherwise.
void CounterRandom::dirichlet(std::span<double> alpha) {
  double largest = -std::numeric_limits<double>::infinity();
  for (double& x : alpha) {
    if (!(x >= 0.0)) throw std::invalid_argument("CounterRandom::dirichlet: alpha must not be negative");
    x = x > 0.0 ? log_gamma_draw(x) : -std::numeric_limits<double>::infinity();
    largest = std::max(largest, x);
  }
  if (!std::isfinite(largest))
    throw std::invalid_argument("CounterRandom::dirichlet: one alpha must be positive");
  double sum = 0.0;
  for (double& x : alpha) sum += x = std::exp(x - largest);
  for (double& x : alpha) x /= sum;
}

// Lemire, ACM TOMACS 2019: the high word of n * bits, rejecting the low words that would make some results
// likelier.
std::uint32_t CounterRandom::below(std::uint32_t n) {
  if (n == 0) throw std::invalid_argument("CounterRandom::below: n must be at least 1");
  const std::uint32_t rejected = (0u - n) % n;
  while (true) {
    const std::uint64_t product = std::uint64_t{bits()} * n;
    if (static_cast<std::uint32_t>(product) >= rejected) return static_cast<std::uint32_t>(product >> 32);
  }
}

std::vector<std::int64_t> random_permutation(std::int64_t n, CounterRandom random) {
  if (n < 0 || n > std::numeric_limits<std::uint32_t>::max())
    throw std::invalid_argument("random_permutation: n must be in [0, 2^32)");
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t last = order.size(); last > 1; --last)
    std::swap(order[last - 1], order[random.below(static_cast<std::uint32_t>(last))]);
  return order;
}

}  // namespace exfusion
