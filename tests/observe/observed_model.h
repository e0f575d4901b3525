// A small model with fused sets that were never trained, in double precision, and images to look at.
#pragma once
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/model.h"
#include "nn/ffn.h"
#include "observe/fused_sets.h"
#include "observe/held_out.h"

namespace exfusion {

inline constexpr std::int64_t kClasses = 4, kDim = 8, kHidden = 12;

inline std::shared_ptr<Model> small_model(const std::string& ffn = "dense", const std::string& pool = "avg") {
  ModelConfig config;
  config.arch = "vit";
  config.vit = {.dim = kDim,
                .depth = 2,
                .heads = 2,
                .hidden = kHidden,
                .patch = 4,
                .image = 8,
                .channels = 1,
                .classes = kClasses,
                .pool = pool};
  config.vit.ffn.name = ffn;
  config.vit.ffn.experts = 3;
  auto model = make_model(config, 1);
  const at::NoGradGuard no_grad;
  auto generator = at::detail::createCPUGenerator(5);
  for (const auto& parameter : model->parameters()) parameter.normal_(0.1, 0.3, generator);
  return model;
}

// Sets of three experts around the model's FFNs; their fused tensors become the model's.
inline std::vector<FusedSet> small_sets(Model& model, double spread = 0.2) {
  const at::NoGradGuard no_grad;
  auto generator = at::detail::createCPUGenerator(7);
  std::vector<FusedSet> sets;
  for (const NamedFfn& named : find_ffns(model)) {
    FusedSet& set = sets.emplace_back(FusedSet{named.name, named.index, {}, {0.5, 0.3, 0.2}});
    const FfnTensors ffn = named.ffn->parameters_in_order();
    for (std::size_t t = 0; t < ffn.size(); ++t) {
      set.experts[t] = at::stack({ffn[t], ffn[t], ffn[t]}).detach();
      set.experts[t] += spread * at::randn(set.experts[t].sizes(), generator).to(ffn[t].scalar_type());
    }
    const FfnTensors fused = fused_tensors(set);
    for (std::size_t t = 0; t < ffn.size(); ++t) ffn[t].copy_(fused[t]);
  }
  return sets;
}

inline HeldOutBatch small_batch(std::int64_t images, std::uint64_t seed, at::ScalarType type = at::kFloat) {
  return {at::randn({images, 1, 8, 8}, at::detail::createCPUGenerator(seed)).to(type),
          at::arange(images) % kClasses};
}

inline nlohmann::json analysis_vectors(const std::string& name) {
  std::ifstream file(std::string(EXFUSION_TEST_DATA) + "/analysis/" + name + ".json");
  return nlohmann::json::parse(file);
}

// Nested lists of numbers.
inline at::Tensor tensor_of(const nlohmann::json& values) {
  if (!values.is_array()) return at::full({}, values.get<double>(), at::kDouble);
  std::vector<at::Tensor> rows;
  for (const nlohmann::json& row : values) rows.push_back(tensor_of(row));
  return at::stack(rows);
}

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

inline std::vector<double> values_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kDouble).contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

}  // namespace exfusion
