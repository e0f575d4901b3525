#include "fusion/bank_shard.h"

#include <algorithm>
#include <utility>

#include "optim/device.h"
#include "optim/reduction.h"

namespace exfusion {

BankShard::BankShard(const FlatParameters& parameters, std::size_t first_slot,
                     const GradientExchange* exchange, bool deterministic)
    : deterministic_(deterministic) {
  if (exchange) group_ = exchange->group();
  const auto slot = [&](std::size_t tensor) { return parameters.slots().at(first_slot + tensor); };
  first_ = slot(0).offset;
  last_ = slot(3).offset + slot(3).size;
  if (exchange && exchange->sharded(first_)) exchange_ = exchange;
  for (std::size_t t = 0; t < 4; ++t) {
    const std::int64_t offset = slot(t).offset;
    sizes_[t] = slot(t).size;
    ranges_[t] = {0, sizes_[t]};
    if (!exchange_) continue;
    const auto [begin, end] = exchange_->owned(offset, offset + sizes_[t]);
    ranges_[t] = {begin - offset, end - offset};
  }
}

at::Tensor BankShard::part(std::size_t tensor, const at::Tensor& whole) const {
  return exchange_ ? whole.reshape(-1).narrow(0, begin(tensor), size(tensor)) : whole;
}

void BankShard::start_gather(const FlatParameters& parameters) {
  if (exchange_) arriving_ = exchange_->start_gather(parameters.values(), first_, last_);
}

void BankShard::finish_gather(const FlatParameters& parameters) {
  if (arriving_.empty()) return;
  wait_for(std::exchange(arriving_, {}));
  parameters.round_bf16(first_, last_ - first_);
}

void BankShard::sum_over_ranks(const at::Tensor& numbers) const {
  if (group_.alone()) return;
  const at::Tensor sent = numbers.to(at::kFloat);
  group_.all_reduce(sent);
  numbers.copy_(sent);
}

void BankShard::sum(std::vector<double>& values) const {
  if (exchange_) group_.sum(values);
}

// Of each product: the sums of the tensor's blocks, or one.
std::int64_t BankShard::numbers_of(std::size_t tensor) const {
  return deterministic_ ? (sizes_[tensor] + kReductionBlock - 1) / kReductionBlock : 1;
}

void BankShard::append_products(c10::Device device, std::size_t tensor, const float* g,
                                std::span<const float* const> w, std::vector<double>& numbers) const {
  const std::int64_t count = numbers_of(tensor);
  const std::size_t place = numbers.size();
  numbers.resize(place + w.size() * static_cast<std::size_t>(count));
  if (!deterministic_) {
    inner_products_on(device, g, w, size(tensor), std::span(numbers).subspan(place));
    return;
  }
  // Every block has one owner: what the others add to its sum is 0, and the tree over the blocks is that of
  // one rank.
  for (std::size_t k = 0; k < w.size(); ++k) {
    double* row =
        numbers.data() + place + static_cast<std::int64_t>(k) * count + begin(tensor) / kReductionBlock;
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < size(tensor); i += kReductionBlock)
      row[i / kReductionBlock] = block_product(std::min(kReductionBlock, size(tensor) - i), g + i, w[k] + i);
  }
}

void BankShard::take_products(std::size_t tensor, std::span<double>& numbers,
                              std::span<double> result) const {
  const auto count = static_cast<std::size_t>(numbers_of(tensor));
  for (double& product : result) {
    product += sum_blocks(numbers.data(), static_cast<std::int64_t>(count));
    numbers = numbers.subspan(count);
  }
}

}  // namespace exfusion
