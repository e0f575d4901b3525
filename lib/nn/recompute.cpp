#include "nn/recompute.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace exfusion {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

thread_local bool computing_again = false;

// The autocast of the forward pass, again. Its cache of casted weights stays off: filled without a graph, in
// the forward pass, it would cut weights off from their gradients; and a part casts each weight once anyway.
class AutocastScope {
 public:
  AutocastScope(at::DeviceType device, bool enabled, at::ScalarType type)
      : device_(device),
        was_enabled_(at::autocast::is_autocast_enabled(device)),
        was_cached_(at::autocast::is_autocast_cache_enabled()),
        was_type_(at::autocast::get_autocast_dtype(device)) {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, type);
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~AutocastScope() {
    at::autocast::set_autocast_enabled(device_, was_enabled_);
    at::autocast::set_autocast_dtype(device_, was_type_);
    at::autocast::set_autocast_cache_enabled(was_cached_);
  }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  at::DeviceType device_;
  bool was_enabled_, was_cached_;
  at::ScalarType was_type_;
};

// What the backward pass needs to compute the part again, carried by the graph.
struct Pass : torch::CustomClassHolder {
  DifferentiablePart part;
  at::DeviceType device;
  bool autocast;
  at::ScalarType type;

  Pass(DifferentiablePart the_part, at::DeviceType on)
      : part(std::move(the_part)),
        device(on),
        autocast(at::autocast::is_autocast_enabled(on)),
        type(at::autocast::get_autocast_dtype(on)) {}

  variable_list compute(const variable_list& inputs) const {
    const AutocastScope precision(device, autocast, type);
    return part(inputs);
  }
};

// Restores the flag also when the part throws.
struct AgainScope {
  bool before = std::exchange(computing_again, true);
  ~AgainScope() { computing_again = before; }
};

struct Recompute : torch::autograd::Function<Recompute> {
  static variable_list forward(AutogradContext* context, at::TensorList inputs,
                               const c10::intrusive_ptr<Pass>& pass) {
    context->save_for_backward(inputs.vec());
    context->saved_data["pass"] = c10::IValue::make_capsule(pass);
    return pass->compute(inputs.vec());  // the caller of forward has switched the graph off
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto pass = c10::static_intrusive_pointer_cast<Pass>(context->saved_data["pass"].toCapsule());
    variable_list inputs = context->get_saved_variables();
    for (at::Tensor& input : inputs) input = input.detach().requires_grad_();
    variable_list outputs;
    {
      const AgainScope again;
      const at::AutoGradMode graph(true);
      outputs = pass->compute(inputs);
    }
    torch::autograd::backward(outputs, gradients);  // adds to the parameters' gradients
    for (at::Tensor& input : inputs) input = input.grad();
    inputs.emplace_back();  // of `pass`
    return inputs;
  }
};

}  // namespace

std::vector<at::Tensor> recomputed(const DifferentiablePart& part, const std::vector<at::Tensor>& inputs) {
  if (!at::GradMode::is_enabled()) return part(inputs);
  TORCH_CHECK(inputs.at(0).requires_grad(), "recomputed: the first input must require a gradient");
  return Recompute::apply(at::TensorList(inputs), c10::make_intrusive<Pass>(part, inputs[0].device().type()));
}

bool recomputing() {
  return computing_again;
}

}  // namespace exfusion
