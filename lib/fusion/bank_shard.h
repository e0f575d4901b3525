// Which part of an FFN's experts this rank keeps: all of it, or with dist.shard a range of each tensor whose
// ends lie on the blocks of the sums over parameters (optim/reduction.h).
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "dist/gradient_exchange.h"
#include "optim/flat_parameters.h"

namespace exfusion {

class BankShard {
 public:
  // Of the FFN whose four tensors are the slots from `first_slot` on. Without `exchange` all of it.
  // `deterministic`: sums over parameters have the bits of those over the whole tensors.
  BankShard(const FlatParameters& parameters, std::size_t first_slot, const GradientExchange* exchange,
            bool deterministic);
  bool whole() const { return exchange_ == nullptr; }
  std::int64_t ffn_size() const { return sizes_[0] + sizes_[1] + sizes_[2] + sizes_[3]; }  // of the whole FFN
  std::int64_t begin(std::size_t tensor) const { return ranges_[tensor].first; }  // in elements of the tensor
  std::int64_t size(std::size_t tensor) const { return ranges_[tensor].second - ranges_[tensor].first; }

  at::Tensor part(std::size_t tensor,
                  const at::Tensor& whole) const;  // flat, or `whole` itself if this rank has all

  // Everyone receives the FFN's parameters from their owners, and rounds them (FlatParameters::round_bf16).
  // They are on their way from start_gather on, and there after finish_gather.
  void start_gather(const FlatParameters& parameters);
  void finish_gather(const FlatParameters& parameters);
  // Adds up a few numbers of every rank's samples, in place, sent as fp32: sharded or not.
  void sum_over_ranks(const at::Tensor& numbers) const;
  // Adds up what each rank has of its part. Nothing if this rank has all.
  void sum(std::vector<double>& values) const;
  // <G, W_k> over one tensor of sharded experts, in two halves around a sum over ranks of `numbers`: appends
  // what this rank has of them, `g` and `w[k]` pointing to its part (fp32, on `device`) …
  void append_products(c10::Device device, std::size_t tensor, const float* g,
                       std::span<const float* const> w, std::vector<double>& numbers) const;
  // … and takes from the front of `numbers` what came of it: result[k] += <G, W_k>.
  void take_products(std::size_t tensor, std::span<double>& numbers, std::span<double> result) const;

 private:
  std::int64_t numbers_of(std::size_t tensor) const;
  const GradientExchange* exchange_ = nullptr;  // null: all of it
  ProcessGroup group_;
  bool deterministic_;
  std::vector<Pending> arriving_;
  std::int64_t first_ = 0, last_ = 0;  // of the FFN in the flat buffers
  std::array<std::pair<std::int64_t, std::int64_t>, 4> ranges_;
  std::array<std::int64_t, 4> sizes_;  // of the whole tensors
};

}  // namespace exfusion
