// Counter-based random numbers: a number is a function of (seed, what for, epoch, sample, layer, position)
// and of nothing else. So there is no generator state to save, and neither threads nor micro-batches nor
// ranks change what is drawn.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace exfusion {

// What a draw is for. The values are part of the meaning of a seed: append, never reorder.
enum class Draw : std::uint32_t {
  init = 0,                 // epoch 0, sample: index of the tensor
  order = 1,                // (epoch): permutation of the training set
  augment = 2,              // (epoch, sample): flip, crop, erase
  mix = 3,                  // (0, step): mixup and cutmix lambda, box and partners
  drop_path = 4,            // (epoch, sample, layer)
  expert_init = 5,          // epoch: expert, sample: index of the tensor
  expert_noise = 6,         // epoch: expert, sample: index of the tensor
  synthetic = 7,            // (split, sample): made-up data
  holdout = 8,              // (0): which training samples are held out for validation
  router_init = 9,          // sample: index of the FFN
  weight_noise = 10,        // (step, ffn): noise on the weights of the experts
  resampling = 11,          // (kind, resample): bootstrap and permutation draws of a comparison
  token_partition = 12,     // (step, 0, block): which expert each token goes to
  expert_drop = 13,         // epoch: expert, sample: index of the FFN: which hidden units drop re-draws
  expert_redraw = 14,       // epoch: expert, sample: index of the tensor: what it draws for them
  expert_permutation = 15,  // epoch: expert, sample: index of the FFN: order of its hidden units
};

// Philox4x32-10 (Salmon et al., SC 2011): 128 random bits from a 128-bit counter and a 64-bit key.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

// A sequence of numbers at one such place: Philox with the seed as key and the counter (block, sample, epoch,
// what << 24 | layer). Cheap to make; use a fresh one per place. layer < 2^24; 2^34 draws of 32 bits, then it
// repeats. A precondition that does not hold throws std::invalid_argument.
class CounterRandom {
 public:
  CounterRandom(std::uint64_t seed, Draw what, std::uint32_t epoch = 0, std::uint32_t sample = 0,
                std::uint32_t layer = 0);
  std::uint32_t bits();                     // 32 random bits
  double uniform();                         // [0, 1), 53 bits
  double uniform(double low, double high);  // [low, high)
  double normal();                          // mean 0, variance 1 (Box-Muller)
  double beta(double a, double b);          // Beta(a, b), a > 0, b > 0
  // Replaces alpha by a draw of Dirichlet(alpha); alpha >= 0, not all 0 (where 0, so is the result).
  void dirichlet(std::span<double> alpha);
  std::uint32_t below(std::uint32_t n);  // 0 .. n-1 without bias, n >= 1

 private:
  double log_gamma_draw(double shape);
  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> block_{};
  int used_ = 4;
};

// A permutation of 0 .. n-1 (Fisher-Yates), 0 <= n < 2^32.
std::vector<std::int64_t> random_permutation(std::int64_t n, CounterRandom random);

}  // namespace exfusion
