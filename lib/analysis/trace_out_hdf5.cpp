#include <fmt/format.h>

#include "analysis/trace.h"
#include "analysis/write_hdf5.h"

namespace exfusion::analysis {
namespace {

void write_layer(std::int64_t group, const TraceLayer& layer, std::size_t experts) {
  const std::size_t batches = layer.batches(), sampled = layer.sampled(), items = layer.item_domain.size();
  const auto field = [&]<class T>(const char* name, const std::vector<std::size_t>& sizes,
                                  const std::vector<T>& values) {
    if (!values.empty()) write_values(group, name, sizes, values);
  };
  const auto whole = [](const std::vector<double>& values) {
    return std::vector<std::int64_t>(values.begin(), values.end());
  };
  field("tokens", {batches}, whole(layer.tokens));
  field("count", {batches, experts}, whole(layer.count));
  field("sum_prob", {batches, experts}, layer.sum_prob);
  field("sum_logit", {batches, experts}, layer.sum_logit);
  field("sum_logit_sq", {batches, experts}, layer.sum_logit_sq);
  field("selection_bias", {experts}, layer.selection_bias);
  field("sum_gate", {batches, experts}, layer.sum_gate);
  field("sum_norm", {batches, experts}, layer.sum_norm);
  field("sum_norm_sq", {batches, experts}, layer.sum_norm_sq);
  field("sum_gate_norm", {batches, experts}, layer.sum_gate_norm);
  field("sum_gate_norm_sq", {batches, experts}, layer.sum_gate_norm_sq);
  field("sum_rsd", {batches, experts}, layer.sum_rsd);
  field("sum_taylor", {batches, experts}, layer.sum_taylor);
  field("domain", {batches}, layer.domain);
  field("item_domain", {items}, layer.item_domain);
  field("item_count", {items, experts}, whole(layer.item_count));
  field("batch", {sampled}, layer.batch);
  field("item", {sampled}, layer.item);
  field("logits", {sampled, experts}, layer.logits);
  field("hidden", {sampled, layer.hidden_size()}, layer.hidden);
}

}  // namespace

void write_trace(const Trace& trace, const std::filesystem::path& file) {
  check_trace(trace, file.string());
  write_hdf5_file(file, [&](std::int64_t opened) {
    write_texts(opened, "format", {"exfusion-trace"}, true);
    write_integer(opened, "version", 1);
    write_integer(opened, "num_experts", static_cast<std::int64_t>(trace.experts));
    write_integer(opened, "top_k", static_cast<std::int64_t>(trace.top_k));
    write_texts(opened, "scores", {trace.scores == RouterScores::softmax ? "softmax" : "sigmoid"}, true);
    if (trace.aux_loss_coef) write_number(opened, "aux_loss_coef", *trace.aux_loss_coef);
    if (!trace.domains.empty()) write_texts(opened, "domains", trace.domains, false);
    for (const TraceLayer& layer : trace.layers)
      write_layer(create_group(opened, fmt::format("layer_{:03}", layer.layer)), layer, trace.experts);
  });
}

}  // namespace exfusion::analysis
