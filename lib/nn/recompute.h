// Activation checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory cost"): the forward
// pass keeps a part's inputs and none of its activations, the backward pass computes the part once more.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace exfusion {

using DifferentiablePart = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& inputs)>;

// part(inputs), with the gradients of the inputs and of the parameters that `part` uses as without
// recomputation: they are computed by the same operators on the same numbers (only a parameter that several
// parts use gets their gradients one by one, which may round otherwise). The first input must require a
// gradient. `part` is called again in the backward pass, with the autocast state of now: it must give the
// same values then, so its random draws and weights must be what they were, and what it refers to must live
// as long as the graph. Where no graph is recorded it is part(inputs) and nothing else. What `part` returns
// becomes the result itself: who keeps such a tensor, as an FFN keeps its loss, has it with its graph.
std::vector<at::Tensor> recomputed(const DifferentiablePart& part, const std::vector<at::Tensor>& inputs);

// Whether this thread computes a part once more. What counts passes (statistics of routers, of loads) has
// seen this one.
bool recomputing();

}  // namespace exfusion
