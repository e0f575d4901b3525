#include "fusion/bank_updates.h"

#include <ATen/ATen.h>

#include <functional>
#include <span>
#include <vector>

namespace exfusion {
namespace {

using PartOfRouter = std::function<at::Tensor(const RouterMemory&)>;

// One flat tensor of what `part` names in every router; undefined where there are none.
at::Tensor gathered(const std::deque<ExpertBank>& banks, const PartOfRouter& part) {
  std::vector<at::Tensor> parts;
  for (const ExpertBank& bank : banks) {
    if (bank.router()) parts.push_back(part(*bank.router()).reshape(-1));
  }
  return parts.empty() ? at::Tensor() : at::cat(parts);
}

void scatter(const at::Tensor& all, std::deque<ExpertBank>& banks, const PartOfRouter& part) {
  std::int64_t place = 0;
  for (const ExpertBank& bank : banks) {
    if (!bank.router()) continue;
    const at::Tensor target = part(*bank.router());
    target.copy_(all.narrow(0, place, target.numel()).view(target.sizes()));
    place += target.numel();
  }
}

at::Tensor routing(const RouterMemory& router) {
  return router.step_routing();
}

at::Tensor jacobian(const RouterMemory& router) {
  return router.step_jacobian();
}

at::Tensor gradient(const RouterMemory& router) {
  return router.router_gradient();
}

}  // namespace

void sum_routing(std::deque<ExpertBank>& banks, const ProcessGroup& group) {
  if (group.alone() || banks.empty() || banks.front().routes_in_step()) return;
  const at::Tensor r = gathered(banks, routing);
  if (!r.defined()) return;
  const at::Tensor sent = r.to(at::kFloat);
  group.all_reduce(sent);
  scatter(sent, banks, routing);
}

void RoutingLeaves::take(LeafNode leaf, std::deque<ExpertBank>& banks) {
  const at::Tensor r = gathered(banks, routing);
  if (!r.defined()) return;
  routing_.push(leaf, r);
  jacobians_.push(leaf, gathered(banks, jacobian));
  for (ExpertBank& bank : banks) {
    bank.router()->step_routing().zero_();
    bank.router()->step_jacobian().zero_();
  }
}

void RoutingLeaves::finish(std::deque<ExpertBank>& banks, const ProcessGroup& group) {
  if (routing_.nodes().empty()) return;
  scatter(total_over_ranks(routing_, leaves_, group), banks, routing);
  scatter(total_over_ranks(jacobians_, leaves_, group), banks, jacobian);
}

void update_banks(std::deque<ExpertBank>& banks, const BankUpdate& update, const ProcessGroup& group,
                  bool whole_jacobians) {
  std::vector<double> prices;  // of all banks in one sum
  for (const ExpertBank& bank : banks) bank.append_prices(prices);
  group.sum(prices);
  std::span<double> rest(prices);
  for (ExpertBank& bank : banks)
    bank.update_experts(update.config, update.lr, update.weights_lr, update.update, update.gradient_scale,
                        rest);  // its gather goes on beside the next one's update
  for (ExpertBank& bank : banks) bank.finish_gather();
  if (!group.alone() && !whole_jacobians) {
    const at::Tensor gradients = gathered(banks, gradient);
    if (gradients.defined()) {
      group.all_reduce(gradients);
      scatter(gradients, banks, gradient);
    }
  }
  for (ExpertBank& bank : banks)
    bank.update_router(update.config, update.weights_lr, update.update, update.gradient_scale);
}

}  // namespace exfusion
