// How much classes want opposite things of the same weights: 0, all want the same, to 1 - 1/C where their
// gradients are orthogonal, and above where they are opposed (docs/metrics.md; our own measure). The same for
// dense, fused and sparse FFNs.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "observe/ffn_tokens.h"

namespace exfusion {

// kappa = 1 - |mean_c g_c|^2 / mean_c |g_c|^2 for gradients g_c of the mean loss of class c.
struct Interference {
  Interference(std::int64_t classes, std::int64_t parts);
  double kappa = 0.0;         // squares replaced by products of two halves of the batches: noise in g_c alone
                              // would push it towards 1 - 1/C. NaN where these are not positive
  double kappa_biased = 0.0;  // as the formula says
  std::vector<double> kappa_of_expert;  // [parts] as kappa, of one expert's tensors each
  std::vector<double> class_norm;       // [C] |g_c|; NaN: no images
};

// kappa from class gradients [C, size], of one half of the images and of the other.
double interference(const at::Tensor& half, const at::Tensor& other);

// Adds up the batches of one block, even and odd ones apart.
class ClassGradients {
 public:
  // `parts` FFNs of these widths: 1, or the experts of a mixture.
  ClassGradients(std::int64_t classes, std::int64_t parts, std::int64_t dim, std::int64_t hidden);
  void add(const BlockTokens& tokens, const at::Tensor& labels);  // [n] int64, of the batch's images
  Interference finish() const;
  static double bytes(std::int64_t classes, std::int64_t parts, std::int64_t dim, std::int64_t hidden);

 private:
  std::int64_t dim_, hidden_, batches_ = 0;
  at::Tensor sums_[2];    // [parts, C, 2 dim hidden + hidden + dim]: of dL/dW, images of a class added up
  at::Tensor images_[2];  // [C] double
};

}  // namespace exfusion
