// Accuracy and loss over a whole split: every image once, in order, whatever the batch size.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "data/dataset.h"
#include "dist/process_group.h"
#include "models/model.h"

namespace exfusion {

struct Evaluation {
  double accuracy = 0.0;  // 0 to 1
  double loss = 0.0;      // mean cross entropy
  std::int64_t samples = 0;
  double seconds = 0.0;
};

// On the device of the model. The ranks of `group` share the batches, whose bounds do not depend on them, and
// all receive the result. With `logits` given, it receives the logits [samples, classes] fp32, on the CPU,
// and the group is one rank.
Evaluation evaluate(Model& model, const Dataset& split, const DataConfig& data, std::int64_t classes,
                    const std::string& precision, at::Tensor* logits = nullptr,
                    const ProcessGroup& group = {});

}  // namespace exfusion
