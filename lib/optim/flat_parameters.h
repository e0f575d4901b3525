// All parameters of a model in one flat buffer and all gradients in another: one memset, one norm, one
// all-reduce.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace exfusion {

struct ParameterSlot {
  std::string name;
  at::Tensor parameter;     // the module's leaf, now a view into values()
  std::int64_t offset = 0;  // in elements, a multiple of 16 (64 bytes)
  std::int64_t size = 0;    // elements; the padding behind them stays 0
  bool decay = false;
  double lr_scale = 1.0;   // learning rate times this, weight decay over it
  double eps_scale = 1.0;  // AdamW's eps times this
};

class FlatParameters {
 public:
  // Moves the parameters (fp32, contiguous, all on one device) into one buffer in the order given; their
  // .grad become views of the other. From then on autograd accumulates into that buffer: never reset .grad.
  explicit FlatParameters(std::vector<ParameterSlot> slots);
  const std::vector<ParameterSlot>& slots() const { return slots_; }
  at::Tensor values() const { return values_; }        // [elements] fp32
  at::Tensor gradients() const { return gradients_; }  // [elements] fp32
  void zero_gradients();

  // From now on there is a bf16 copy of the values, for the matrix products of a forward pass. Whoever writes
  // values() writes it too: the update kernels in their walk, everyone else by round_bf16().
  void keep_bf16();
  at::Tensor bf16_values() const { return bf16_; }  // [elements] bf16, to nearest even; undefined before
  void round_bf16() const { round_bf16(0, values_.numel()); }
  void round_bf16(std::int64_t begin,
                  std::int64_t count) const;  // rounds these values; nothing without the copy
  // The copy of the values from `offset` on, for kernels; null without the copy.
  std::uint16_t* bf16_data(std::int64_t offset) const;

 private:
  std::vector<ParameterSlot> slots_;
  at::Tensor values_, gradients_, bf16_;
};

}  // namespace exfusion
