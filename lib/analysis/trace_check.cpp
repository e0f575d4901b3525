#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/trace.h"
#include "core/error.h"

namespace exfusion::analysis {
namespace {

constexpr double kExact = 9007199254740992.0;      // 2^53: whole numbers up to here are exact as double
constexpr std::size_t kMostTableCells = 1u << 26;  // of a table of domains and experts
constexpr double kRounding = 1e-4;                 // relative; sums that a model made in float

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw FormatError(where + ": " + what);
}

// Where the entry (batch, expert) of a field is.
std::string entry(const std::string& where, const char* field, std::size_t index, std::size_t experts) {
  return fmt::format("{}/{}[{}, {}]", where, field, index / experts, index % experts);
}

void check_finite(const std::vector<double>& values, const std::string& where, const char* field,
                  std::size_t experts, bool negative_allowed) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]) || (!negative_allowed && values[i] < 0.0))
      refuse(entry(where, field, i, experts),
             fmt::format("must be {}, is {}", negative_allowed ? "finite" : "0 or more", values[i]));
  }
}

void check_counts(const TraceLayer& layer, const Trace& trace, const std::string& where) {
  if (layer.tokens.empty()) refuse(where, "holds no batches");
  double total = 0.0;
  for (std::size_t b = 0; b < layer.batches(); ++b) {
    if (!(layer.tokens[b] > 0.0))
      refuse(fmt::format("{}/tokens[{}]", where, b),
             fmt::format("a batch must have tokens, has {}", layer.tokens[b]));
    double slots = 0.0;
    for (std::size_t i = b * trace.experts; i < (b + 1) * trace.experts; ++i) {
      if (layer.count[i] < 0.0 || layer.count[i] > layer.tokens[b])
        refuse(
            entry(where, "count", i, trace.experts),
            fmt::format("must be 0 to {}, the tokens of the batch; is {}", layer.tokens[b], layer.count[i]));
      slots += layer.count[i];
    }
    if (slots != static_cast<double>(trace.top_k) * layer.tokens[b])
      refuse(
          fmt::format("{}/count[{}]", where, b),
          fmt::format("must sum to top_k tokens, {} * {}; sums to {}", trace.top_k, layer.tokens[b], slots));
    total += slots;
  }
  if (total > kExact) refuse(where + "/count", "more than 2^53 selections in all");
}

// sum^2 <= n sum_sq for every entry (Cauchy and Schwarz), which any real sums obey.
void check_squares(const std::vector<double>& sum, const std::vector<double>& sum_sq,
                   const std::vector<double>& counts, const std::string& where, const char* field,
                   std::size_t experts) {
  if (sum.empty() || sum_sq.empty()) return;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    const double n = counts.size() == sum.size() ? counts[i] : counts[i / experts];
    if (sum[i] * sum[i] > n * sum_sq[i] * (1.0 + kRounding) + 1e-30)
      refuse(entry(where, field, i, experts),
             fmt::format("{} is too small for a sum of {} over {} tokens", sum_sq[i], sum[i], n));
  }
}

void check_sums(const TraceLayer& layer, const Trace& trace, const std::string& where) {
  const std::size_t experts = trace.experts;
  check_finite(layer.sum_logit, where, "sum_logit", experts, true);
  check_finite(layer.sum_logit_sq, where, "sum_logit_sq", experts, false);
  check_finite(layer.sum_prob, where, "sum_prob", experts, false);
  for (std::size_t i = 0; i < layer.selection_bias.size(); ++i) {
    if (!std::isfinite(layer.selection_bias[i]))
      refuse(fmt::format("{}/selection_bias[{}]", where, i), "must be finite");
  }
  const std::pair<const char*, const std::vector<double>*> routed[] = {
      {"sum_gate", &layer.sum_gate},
      {"sum_norm", &layer.sum_norm},
      {"sum_norm_sq", &layer.sum_norm_sq},
      {"sum_gate_norm", &layer.sum_gate_norm},
      {"sum_gate_norm_sq", &layer.sum_gate_norm_sq},
      {"sum_rsd", &layer.sum_rsd},
      {"sum_taylor", &layer.sum_taylor}};
  for (const auto& [name, values] : routed) {
    check_finite(*values, where, name, experts, values == &layer.sum_taylor);
    for (std::size_t i = 0; i < values->size(); ++i) {
      if (layer.count[i] == 0.0 && (*values)[i] != 0.0)
        refuse(entry(where, name, i, experts), fmt::format("is {} without routed tokens", (*values)[i]));
    }
  }
  for (std::size_t b = 0; b < layer.batches() && !layer.sum_prob.empty(); ++b) {
    const auto row = layer.sum_prob.begin() + static_cast<std::ptrdiff_t>(b * experts);
    const double total = std::reduce(row, row + static_cast<std::ptrdiff_t>(experts));
    if (!(std::abs(total - layer.tokens[b]) <= kRounding * layer.tokens[b]))
      refuse(fmt::format("{}/sum_prob[{}]", where, b),
             fmt::format("must sum to the tokens, {}, within 1e-4; sums to {}", layer.tokens[b], total));
  }
  check_squares(layer.sum_logit, layer.sum_logit_sq, layer.tokens, where, "sum_logit_sq", experts);
  check_squares(layer.sum_norm, layer.sum_norm_sq, layer.count, where, "sum_norm_sq", experts);
  check_squares(layer.sum_gate_norm, layer.sum_gate_norm_sq, layer.count, where, "sum_gate_norm_sq", experts);
}

void check_sample(const TraceLayer& layer, const Trace& trace, const std::string& where) {
  for (std::size_t s = 0; s < layer.sampled(); ++s) {
    if (layer.batch[s] < 0 || static_cast<std::size_t>(layer.batch[s]) >= layer.batches())
      refuse(fmt::format("{}/batch[{}]", where, s),
             fmt::format("must be one of the {} batches, numbered from 0; is {}", layer.batches(),
                         layer.batch[s]));
  }
  for (std::size_t i = 0; i < layer.logits.size(); ++i) {
    if (!std::isfinite(layer.logits[i])) refuse(entry(where, "logits", i, trace.experts), "must be finite");
  }
  for (std::size_t i = 0; i < layer.hidden.size(); ++i) {
    if (!std::isfinite(layer.hidden[i]))
      refuse(entry(where, "hidden", i, layer.hidden_size()), "must be finite");
  }
}

void check_domains(const std::vector<std::int32_t>& domain, std::size_t domains, const std::string& where) {
  for (std::size_t i = 0; i < domain.size(); ++i) {
    if (domain[i] < 0 || static_cast<std::size_t>(domain[i]) >= domains)
      refuse(fmt::format("{}[{}]", where, i),
             fmt::format("must be one of the {} domains, numbered from 0; is {}", domains, domain[i]));
  }
}

void check_items(const TraceLayer& layer, const Trace& trace, const std::string& where) {
  if (layer.item_domain.empty()) return;
  check_finite(layer.item_count, where, "item_count", trace.experts, false);
  for (std::size_t i = 0; i < layer.item_domain.size(); ++i) {
    const auto row = layer.item_count.begin() + static_cast<std::ptrdiff_t>(i * trace.experts);
    if (!(std::reduce(row, row + static_cast<std::ptrdiff_t>(trace.experts)) > 0.0))
      refuse(fmt::format("{}/item_count[{}]", where, i), "an item must have tokens");
  }
  if (column_sums(layer.item_count, trace.experts) != column_sums(layer.count, trace.experts))
    refuse(where + "/item_count", "must have the same sums over items as count over batches");
  for (std::size_t s = 0; s < layer.item.size(); ++s) {
    if (layer.item[s] < 0 || static_cast<std::size_t>(layer.item[s]) >= layer.item_domain.size())
      refuse(fmt::format("{}/item[{}]", where, s),
             fmt::format("must be one of the {} items, numbered from 0; is {}", layer.item_domain.size(),
                         layer.item[s]));
  }
}

}  // namespace

void check_domain_name(const std::string& name, const std::string& where) {
  if (name.empty()) refuse(where, "a domain's name is empty");
  for (const char one : name) {
    if (static_cast<unsigned char>(one) < 0x20) refuse(where, "a domain's name holds a control character");
  }
}

void check_trace(const Trace& trace, const std::string& file) {
  for (const std::string& name : trace.domains) check_domain_name(name, file);
  if (trace.layers.empty()) refuse(file, "holds no layers: groups layer_000, layer_001, ...");
  for (const TraceLayer& layer : trace.layers) {
    const std::string where = fmt::format("{}: layer_{:03}", file, layer.layer);
    check_counts(layer, trace, where);
    check_sums(layer, trace, where);
    check_sample(layer, trace, where);
    const std::size_t most = std::min<std::size_t>(65536, kMostTableCells / trace.experts);
    const std::size_t domains = trace.domains.empty() ? most : trace.domains.size();
    if (domains > most)
      refuse(file, fmt::format("{} domains of {} experts are too many", domains, trace.experts));
    check_items(layer, trace, where);
    check_domains(layer.domain, domains, where + "/domain");
    check_domains(layer.item_domain, domains, where + "/item_domain");
  }
}

}  // namespace exfusion::analysis
