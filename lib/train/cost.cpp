#include "train/cost.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <fstream>
#include <string>

namespace exfusion {
namespace {

double bytes_of(const NamedTensors& tensors) {
  double bytes = 0.0;
  for (const auto& [name, tensor] : tensors) bytes += static_cast<double>(tensor.nbytes());
  return bytes;
}

// The experts' own weights and moments are counted by their sizes; the rest of a bank's state decides a.
double held_values(const ExpertBank& bank) {  // by this rank
  double values = 0.0;
  for (const at::Tensor& tensor : bank.expert_tensors()) values += static_cast<double>(tensor.numel());
  return values;
}

double expert_values(const ExpertBank& bank) {
  return static_cast<double>(bank.experts() * bank.shard().ffn_size());
}

// How often a step fuses: at its end, and in its forward pass where that uses other weights.
double fusions_per_step(const FusionConfig& fusion) {
  return fusion.routes_in_step() || fusion.dirichlet > 0.0 ? 2.0 : 1.0 + fusion.expert_dropout;
}

// Fusion's FLOPs in one step: W = sum_k a_k W_k and c_k = <G, W_k>, two for each number of an expert.
double flops_per_step(const FusionConfig& fusion, const ExpertBank& bank) {
  return 2.0 * (fusions_per_step(fusion) + 1.0) * expert_values(bank);
}

// The experts' moments: two for each of their numbers, or for those of one of them.
double moment_values(const FusionConfig& fusion, const ExpertBank& bank) {
  return 2.0 * held_values(bank) / static_cast<double>(fusion.shares_moments() ? bank.experts() : 1);
}

// What decides a: a itself, z or router and memory, with moments and Jacobian.
double weight_bytes(const FusionConfig& fusion, const ExpertBank& bank) {
  double bytes = bytes_of(bank.expert_state()) + bytes_of(bank.optimizer_state()) -
                 4.0 * (held_values(bank) + moment_values(fusion, bank));
  for (const auto& [name, tensor] : bank.optimizer_state()) {
    if (name.starts_with("start.")) bytes -= static_cast<double>(tensor.nbytes());
  }
  return bytes;
}

// The router's FLOPs for one token: its logits, and N (N + 1) / 2 products with x for the Jacobian.
double router_flops(const ExpertBank& bank) {
  const auto n = static_cast<double>(bank.experts());
  if (!bank.router()) return 0.0;
  const auto dim = static_cast<double>(bank.router()->router_gradient().size(1));
  return 2.0 * n * dim + n * (n + 1.0) * dim;
}

double deployed_parameters(const TrainingState& state) {
  double count = 0.0;
  for (const ParameterSlot& slot : state.parameters->slots()) count += static_cast<double>(slot.size);
  for (const auto& ffn : state.feed_forwards) {
    const auto dense = ffn->dense_form();
    if (!dense) continue;
    for (const auto& item : ffn->named_parameters()) count -= static_cast<double>(item.value().numel());
    for (const at::Tensor& tensor : *dense) count += static_cast<double>(tensor.numel());
  }
  return count;
}

}  // namespace

TrainingCost training_cost(const RunConfig& config, const TrainingState& state) {
  TrainingCost cost;
  double model = 0.0, fused = 0.0, experts = 0.0, held = 0.0, step_flops = 0.0, token_flops = 0.0;
  double moments = 0.0, starts = 0.0, working = 0.0, deciding = 0.0;
  for (const ParameterSlot& slot : state.parameters->slots()) model += static_cast<double>(slot.size);
  for (const ExpertBank& bank : state.banks) {
    const double values = expert_values(bank);
    experts += values;
    held += held_values(bank);
    moments += moment_values(*config.fusion, bank);
    fused += values / static_cast<double>(bank.experts());
    step_flops += flops_per_step(*config.fusion, bank);
    token_flops += router_flops(bank);
    cost.fusion_bytes += weight_bytes(*config.fusion, bank);
    if (!config.fusion->from.empty()) starts += values / static_cast<double>(bank.experts());
    if (config.fusion->weights == "learned") deciding += static_cast<double>(bank.experts());
    if (!bank.router()) continue;
    const auto router = static_cast<double>(bank.router()->router_gradient().numel());
    deciding += router;
    working += static_cast<double>(bank.experts()) * router;  // the Jacobian of the step under way
  }
  const auto tokens = static_cast<double>(config.model.vit.tokens());
  cost.flops_per_sample = 3.0 * state.model->forward_flops() + tokens * token_flops +
                          step_flops / static_cast<double>(config.train.global_batch);
  const auto dense_moments = static_cast<double>(state.dense->size());
  cost.parameters_training = model - fused + experts + deciding;
  cost.parameters_deployed = deployed_parameters(state);
  const double averages = state.ema ? model : 0.0;
  const double rounded = state.parameters->bf16_values().defined() ? 0.5 * model : 0.0;
  cost.state_bytes =
      4.0 * (2.0 * model + 2.0 * dense_moments + held + moments + averages + rounded + starts + working) +
      cost.fusion_bytes;
  return cost;
}

std::string cost_text(const TrainingCost& cost) {
  std::string text = fmt::format(
      "{:.4g} MFLOP per training sample; {:.3f} M parameters in training, {:.3f} M deployed",
      cost.flops_per_sample / 1e6, cost.parameters_training / 1e6, cost.parameters_deployed / 1e6);
  if (cost.fusion_bytes > 0.0)
    text += fmt::format("; {:.0f} bytes decide the weights of the experts", cost.fusion_bytes);
  return text;
}

// getrusage would count the program that started this one, up to its exec.
double peak_memory() {
  std::ifstream status("/proc/self/status");
  double kilobytes = 0.0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) kilobytes = std::stod(line.substr(6));
  }
  return 1024.0 * kilobytes;
}

}  // namespace exfusion
