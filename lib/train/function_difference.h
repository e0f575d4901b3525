// How far apart two models are as functions, and that measurement at the start of an upcycled run.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>

#include "train/step.h"

namespace exfusion {

struct FunctionDifference {
  double largest_logit_difference = 0.0;
  double mean_kl = 0.0;         // KL(before || after) of the softmax outputs, mean over the images, in nats
  double top1_agreement = 1.0;  // fraction of images with the same largest logit
};

// From the logits [images, classes] that two models give for the same images; computed in double precision.
FunctionDifference measure_difference(const at::Tensor& before, const at::Tensor& after);

// If the run was upcycled (fusion.from): compares the source's dense model with the model of step 0 and with
// what the first fusion of its experts makes of it, on up to 1,000 test images in fp32; logs the result and
// writes start.json to `folder`. Leaves the state's bits as they were. Nothing after step 0.
void log_upcycling(const RunConfig& config, TrainingState& state, const Dataset& test,
                   const std::filesystem::path& folder);

}  // namespace exfusion
