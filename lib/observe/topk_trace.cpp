#include "observe/topk_trace.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "analysis/draws.h"
#include "models/model.h"

namespace exfusion {
namespace {

using analysis::Accumulators;
using analysis::TraceLayer;

struct Batch {
  std::int32_t number = 0, first_image = 0;
  std::vector<std::int64_t> image;  // [T]: of the token, within the batch
  std::vector<std::int64_t> label;  // [images]
  std::vector<std::int64_t> sampled;
};

// The sums over routed tokens, each in the trace per batch and in the accumulators per class.
struct RoutedSum {
  std::vector<double> TraceLayer::*of_batch;
  std::vector<double> Accumulators::*of_class;
  at::Tensor values;  // [T, K] double; undefined: this sum is not taken
};

at::Tensor in_double(const at::Tensor& x) {
  return x.detach().to(at::kDouble).contiguous();
}

std::vector<RoutedSum> routed_sums(const BlockPass& pass) {
  const at::Tensor outputs = in_double(pass.outputs), gates = in_double(pass.routing.gates);
  const at::Tensor norms = outputs.norm(2, -1), gated = gates * norms;
  const at::Tensor damage = gates.size(1) > 1 ? renormalised_damage(outputs, gates) : at::Tensor();
  const at::Tensor taylor = pass.gradient.defined()
                                ? -gates * (outputs * in_double(pass.gradient).unsqueeze(1)).sum(-1)
                                : at::Tensor();
  return {{&TraceLayer::count, &Accumulators::n, at::ones_like(gates)},
          {&TraceLayer::sum_gate, &Accumulators::g1, gates},
          {&TraceLayer::sum_norm, &Accumulators::a1, norms},
          {&TraceLayer::sum_norm_sq, &Accumulators::a2, norms * norms},
          {&TraceLayer::sum_gate_norm, &Accumulators::ga, gated},
          {&TraceLayer::sum_gate_norm_sq, &Accumulators::ga2, gated * gated},
          {&TraceLayer::sum_rsd, &Accumulators::r, damage},
          {&TraceLayer::sum_taylor, &Accumulators::t1, taylor}};
}

void add_routed(const BlockPass& pass, const Batch& batch, std::size_t experts, std::size_t classes,
                TraceLayer& layer, TopkSums& sums) {
  const at::Tensor chosen = pass.routing.chosen.contiguous();
  const std::int64_t* expert = chosen.const_data_ptr<std::int64_t>();
  const auto top_k = static_cast<std::size_t>(chosen.size(1));
  const auto rows = static_cast<std::size_t>(chosen.size(0));
  for (const RoutedSum& sum : routed_sums(pass)) {
    if (!sum.values.defined()) continue;
    const at::Tensor values = sum.values.contiguous();
    const double* value = values.const_data_ptr<double>();
    std::vector<double>&of_batch = layer.*sum.of_batch, &of_class = sums.by_class.*sum.of_class;
    const std::size_t first = of_batch.size();
    of_batch.resize(first + experts, 0.0);
    of_class.resize(classes * experts, 0.0);
    for (std::size_t i = 0; i < rows * top_k; ++i) {
      const auto e = static_cast<std::size_t>(expert[i]);
      const auto image = static_cast<std::size_t>(batch.image[i / top_k]);
      of_batch[first + e] += value[i];
      of_class[static_cast<std::size_t>(batch.label[image]) * experts + e] += value[i];
    }
  }
  const std::size_t first_item = layer.item_count.size();
  layer.item_count.resize(first_item + batch.label.size() * experts, 0.0);
  sums.together.resize(experts * experts, 0.0);
  for (std::size_t t = 0; t < rows; ++t) {
    for (std::size_t k = 0; k < top_k; ++k) {
      const auto e = static_cast<std::size_t>(expert[t * top_k + k]);
      layer.item_count[first_item + static_cast<std::size_t>(batch.image[t]) * experts + e] += 1.0;
      for (std::size_t other = 0; other < top_k; ++other)
        sums.together[e * experts + static_cast<std::size_t>(expert[t * top_k + other])] += 1.0;
    }
  }
}

void add_router(const BlockPass& pass, std::size_t experts, TraceLayer& layer, TopkSums& sums) {
  const at::Tensor logits = in_double(pass.router_logits), log_p = logits.log_softmax(-1);
  const at::Tensor p = log_p.exp(), lse = logits.logsumexp(-1);
  const double *z = logits.const_data_ptr<double>(), *log_one = log_p.const_data_ptr<double>();
  const double *one = p.const_data_ptr<double>(), *log_sum = lse.const_data_ptr<double>();
  const std::size_t first = layer.sum_prob.size(), rows = static_cast<std::size_t>(logits.size(0));
  for (std::vector<double>* field : {&layer.sum_prob, &layer.sum_logit, &layer.sum_logit_sq})
    field->resize(first + experts, 0.0);
  for (std::size_t i = 0; i < rows * experts; ++i) {
    const std::size_t at = first + i % experts;
    layer.sum_prob[at] += one[i];
    layer.sum_logit[at] += z[i];
    layer.sum_logit_sq[at] += z[i] * z[i];
    if (one[i] > 0.0) sums.entropy -= one[i] * log_one[i];
  }
  for (std::size_t t = 0; t < rows; ++t) sums.log_sum_exp_sq += log_sum[t] * log_sum[t];
  layer.tokens.push_back(static_cast<double>(rows));
  sums.tokens += static_cast<double>(rows);
}

void add_sample(const BlockPass& pass, const Batch& batch, TraceLayer& layer, TopkSums& sums) {
  const at::Tensor places = at::tensor(batch.sampled, at::kLong);
  const auto append = [&]<class Value, class Entry>(const at::Tensor& values, std::vector<Entry>& to, Value) {
    const at::Tensor taken = values.detach().index_select(0, places).contiguous();
    const Value* first = taken.const_data_ptr<Value>();
    std::transform(first, first + taken.numel(), std::back_inserter(to),
                   [](Value one) { return static_cast<Entry>(one); });
  };
  append(pass.router_logits, layer.logits, float{});
  append(pass.x.reshape({-1, pass.x.size(-1)}), layer.hidden, float{});
  append(pass.routing.chosen, sums.routes, std::int64_t{});
  for (const std::int64_t place : batch.sampled) {
    layer.batch.push_back(batch.number);
    layer.item.push_back(batch.first_image +
                         static_cast<std::int32_t>(batch.image[static_cast<std::size_t>(place)]));
  }
}

// Tokens of a batch in the sample: random, so that no stride meets a fixed place of the image.
std::vector<std::int64_t> sampled_tokens(std::int64_t tokens, std::int64_t batches, std::int64_t batch) {
  std::vector<std::int64_t> places = random_permutation(
      tokens, analysis::draw(analysis::Purpose::token_sample, static_cast<std::uint32_t>(batch)));
  places.resize(static_cast<std::size_t>(
      std::min(tokens, std::max<std::int64_t>(1, kSampledTokens / std::max<std::int64_t>(1, batches)))));
  std::ranges::sort(places);
  return places;
}

Batch describe(const HeldOutBatch& batch, std::int64_t tokens, std::int64_t number, std::int64_t batches,
               std::int64_t images_before) {
  Batch found;
  found.number = static_cast<std::int32_t>(number);
  found.first_image = static_cast<std::int32_t>(images_before);
  const std::int64_t images = batch.labels.size(0);
  const at::Tensor labels = batch.labels.contiguous();
  found.label.assign(labels.const_data_ptr<std::int64_t>(), labels.const_data_ptr<std::int64_t>() + images);
  for (std::int64_t t = 0; t < tokens; ++t) found.image.push_back(t * images / tokens);
  found.sampled = sampled_tokens(tokens, batches, number);
  return found;
}

void start_layer(const TopkBlock& block, TopkObservation& found) {
  TraceLayer layer;
  layer.layer = block.number;
  const auto numbers = [](const at::Tensor& of) {
    const at::Tensor values = in_double(of);
    return std::vector<double>(values.const_data_ptr<double>(),
                               values.const_data_ptr<double>() + values.numel());
  };
  if (block.ffn->selection_bias().defined()) layer.selection_bias = numbers(block.ffn->selection_bias());
  found.trace.layers.push_back(std::move(layer));
  TopkSums sums;
  sums.router_norms = numbers(in_double(block.ffn->router().weight).norm(2, 1));
  found.sums.push_back(std::move(sums));
}

}  // namespace

std::vector<TopkBlock> topk_blocks(const std::vector<std::shared_ptr<Block>>& blocks) {
  std::vector<TopkBlock> found;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    auto ffn = std::dynamic_pointer_cast<TopkFfn>(blocks[i]->ffn());
    if (ffn && ffn->config().experts > 1)
      found.push_back({static_cast<std::int64_t>(i), blocks[i], std::move(ffn)});
  }
  return found;
}

at::Tensor renormalised_damage(const at::Tensor& outputs, const at::Tensor& gates) {
  const at::Tensor sum = gates.sum(1, /*keepdim=*/true), others = sum - gates;
  const at::Tensor mixed = (outputs * gates.unsqueeze(-1)).sum(1, /*keepdim=*/true);
  const at::Tensor distance = (sum.unsqueeze(-1) * outputs - mixed).norm(2, -1);
  return at::where(others > 0.0, gates / others * distance, at::zeros_like(distance));
}

TopkSeen::TopkSeen(const Model& model, std::int64_t batches, std::int64_t classes, const BlockShare& share)
    : share_(share), batches_(batches), classes_(classes) {
  const std::vector<TopkBlock> blocks = topk_blocks(find_blocks(model));
  if (blocks.empty()) return;
  const FfnConfig& config = blocks[0].ffn->config();
  found_.trace.experts = static_cast<std::size_t>(config.experts);
  found_.trace.top_k = static_cast<std::size_t>(config.top_k);
  found_.trace.aux_loss_coef = config.balance_loss;
  for (const TopkBlock& block : blocks) start_layer(block, found_);
}

void TopkSeen::add(const ModelPass& pass, const HeldOutBatch& held_out) {
  const at::NoGradGuard no_grad;
  for (std::size_t l = 0; l < found_.trace.layers.size(); ++l) {
    TraceLayer& layer = found_.trace.layers[l];
    if (!share_.has(layer.layer)) continue;
    const BlockPass& one = pass.of_block(layer.layer);
    const Batch batch = describe(held_out, one.router_logits.size(0), next_, batches_, images_);
    add_routed(one, batch, found_.trace.experts, static_cast<std::size_t>(classes_), layer, found_.sums[l]);
    add_router(one, found_.trace.experts, layer, found_.sums[l]);
    add_sample(one, batch, layer, found_.sums[l]);
    layer.item_domain.insert(layer.item_domain.end(), batch.label.begin(), batch.label.end());
  }
  ++next_;
  images_ += held_out.labels.size(0);
}

TopkObservation observe_topk(Model& model, const std::vector<HeldOutBatch>& batches, std::int64_t classes,
                             bool gradients) {
  TopkSeen seen(model, static_cast<std::int64_t>(batches.size()), classes);
  if (seen.empty()) return seen.found();
  for (const HeldOutBatch& batch : batches) seen.add(pass_through(model, batch, gradients), batch);
  return seen.found();
}

}  // namespace exfusion
