#include "nn/ffn.h"

#include <ATen/ATen.h>

#include "nn/init.h"
#include "nn/layers.h"

namespace exfusion {

Ffn::Ffn(std::int64_t dim, std::int64_t hidden)
    : fc1_(register_module("fc1", std::make_shared<Linear>(dim, hidden))),
      fc2_(register_module("fc2", std::make_shared<Linear>(hidden, dim))) {}

at::Tensor Ffn::forward(const at::Tensor& x) {
  return fc2_->forward(at::gelu(fc1_->forward(x)));
}

std::array<at::Tensor, 4> Ffn::parameters_in_order() const {
  return {fc1_->weight, fc1_->bias, fc2_->weight, fc2_->bias};
}

std::vector<NamedFfn> find_ffns(const torch::nn::Module& model) {
  std::vector<NamedFfn> found;
  for (const auto& item : model.named_modules(/*name_prefix=*/"", /*include_self=*/false)) {
    if (auto ffn = std::dynamic_pointer_cast<Ffn>(item.value()))
      found.push_back({item.key(), std::move(ffn)});
  }
  return found;
}

std::array<at::Tensor, 4> initial_ffn(std::int64_t dim, std::int64_t hidden, std::uint64_t seed,
                                      std::int64_t ffn, std::int64_t expert) {
  std::array<at::Tensor, 4> values = {at::empty({hidden, dim}), at::zeros({hidden}), at::empty({dim, hidden}),
                                      at::zeros({dim})};
  for (std::int64_t i : {0, 2}) {
    fill_normal(values[static_cast<std::size_t>(i)], 0.02, {seed, Draw::expert_init, expert, 4 * ffn + i});
  }
  return values;
}

}  // namespace exfusion
