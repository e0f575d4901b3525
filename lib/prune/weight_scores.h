// Scores that need no data, only an expert's weights.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace exfusion {

// aimer: the mean magnitude of an expert's weights over their root mean square; the highest is pruned first
//   (github.com/ZongfangLiu/AIMER, code)
// weight_norm: the l2 norm of an expert's weights; router_norm: that of its row of the router (MC-Suite,
//   arXiv 2504.05586); the lowest is pruned first
std::vector<std::string> weight_score_names();
bool needs_weights_alone(const std::string& score);
// Whether the weights are the expert's row of the router; otherwise its matrices, without biases.
bool scores_router(const std::string& score);

// Sums over weights of one expert, in the order in which they are added.
struct WeightSums {
  double magnitudes = 0.0, squares = 0.0, count = 0.0;
  void add(const at::Tensor& weights);  // of any shape and floating-point type
};

// Low: pruned first (aimer with its sign turned; an expert of zeros is the first). Throws FormatError for
// weights that are not finite; `expert` is for messages.
double weight_score(const std::string& score, const WeightSums& sums, const std::string& expert);

}  // namespace exfusion
