// The residual stream of a pre-norm transformer. A branch (attention, FFN) is added when the next norm reads
// the stream, so that both cost one pass over memory.
#pragma once
#include <ATen/core/Tensor.h>

namespace exfusion {

class LayerNorm;

// x + factor * branch, not yet added. x, branch [n, tokens, dim]; factor [n] (nn/drop_path.h), undefined: 1;
// branch undefined: x alone.
struct Residual {
  at::Tensor x, branch, factor;
};

// The sum, [n, tokens, dim].
at::Tensor add_branch(const Residual& residual);

struct NormedResidual {
  at::Tensor sum, normed;  // [n, tokens, dim]
};

// The sum and its LayerNorm; normed is bf16 under autocast (arithmetic in fp32).
NormedResidual add_and_norm(const Residual& residual, const LayerNorm& norm);

}  // namespace exfusion
