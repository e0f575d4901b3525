#include "nn/dispatch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

namespace exfusion {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// autograd's own backward of index_select adds row after row; a permutation needs no sum but that over a
// token's choices.
struct TakeRows : torch::autograd::Function<TakeRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows, const at::Tensor& order,
                            const at::Tensor& inverse, std::int64_t choices) {
    context->save_for_backward({inverse});
    context->saved_data["choices"] = choices;
    return rows.index_select(0, choices == 1 ? order : order.floor_divide(choices));
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor inverse = context->get_saved_variables()[0];
    const std::int64_t choices = context->saved_data["choices"].toInt();
    const at::Tensor taken = gradients[0].index_select(0, inverse);
    return {choices == 1 ? taken : taken.view({-1, choices, taken.size(1)}).sum(1), {}, {}, {}};
  }
};

at::Tensor inverse_permutation(const at::Tensor& order) {
  const at::Tensor inverse = at::empty_like(order);
  const auto* from = order.const_data_ptr<std::int64_t>();
  auto* to = inverse.mutable_data_ptr<std::int64_t>();
  for (std::int64_t place = 0; place < order.numel(); ++place) to[from[place]] = place;
  return inverse;
}

}  // namespace

Dispatch dispatch_by_expert(const at::Tensor& chosen, std::int64_t experts, std::int64_t capacity) {
  const at::Tensor contiguous = chosen.contiguous();
  const std::int64_t n = contiguous.numel();
  const auto* expert_of = contiguous.const_data_ptr<std::int64_t>();
  Dispatch dispatch;
  dispatch.loads.resize(static_cast<std::size_t>(experts));
  for (std::int64_t i = 0; i < n; ++i) ++dispatch.loads.at(static_cast<std::size_t>(expert_of[i]));

  std::vector<std::int64_t> next, ends;  // the place of each expert's next assignment, and behind its last
  std::int64_t place = 0;
  for (const std::int64_t load : dispatch.loads) {
    dispatch.counts.push_back(capacity > 0 ? std::min(load, capacity) : load);
    next.push_back(place);
    ends.push_back(place += dispatch.counts.back());
  }
  dispatch.order = at::empty({n}, at::kLong);
  auto* order = dispatch.order.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < n; ++i) {
    const auto expert = static_cast<std::size_t>(expert_of[i]);
    order[next[expert] < ends[expert] ? next[expert]++ : place++] = i;
  }
  dispatch.inverse = inverse_permutation(dispatch.order);
  return dispatch;
}

at::Tensor random_partition(std::int64_t n, std::int64_t experts, CounterRandom random) {
  const at::Tensor chosen = at::empty({n}, at::kLong);
  auto* expert = chosen.mutable_data_ptr<std::int64_t>();
  std::int64_t place = 0;  // expert k has the places n k / experts to n (k + 1) / experts
  for (const std::int64_t assignment : random_permutation(n, random))
    expert[assignment] = (++place * experts - 1) / n;
  return chosen;
}

at::Tensor take_rows(const at::Tensor& rows, const at::Tensor& order, const at::Tensor& inverse,
                     std::int64_t choices) {
  return TakeRows::apply(rows, order, inverse, choices);
}

}  // namespace exfusion
