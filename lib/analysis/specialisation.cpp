#include "analysis/specialisation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "analysis/draws.h"
#include "analysis/imbalance.h"
#include "analysis/probe.h"

namespace exfusion::analysis {
namespace {

constexpr std::uint32_t kShuffles = 200, kRouters = 20;
constexpr std::size_t kMostTokensAtOnce = 2048;
constexpr double kMostProducts = 2e9;  // of the random routers with hidden states, per layer

double entropy(const std::vector<double>& counts, double total) {
  double sum = 0.0;
  for (const double count : counts) {
    if (count > 0.0) sum -= count / total * std::log(count / total);
  }
  return sum;
}

// What has a domain: the items of a layer that has them, else its batches.
struct Labelled {
  const std::vector<double>& count;                  // [units, experts]
  const std::vector<std::int32_t>&domain, &sampled;  // [units]; [S]: the unit of each sampled token
  std::size_t domain_of(std::size_t token) const {
    return static_cast<std::size_t>(domain[static_cast<std::size_t>(sampled[token])]);
  }
};

Labelled labelled(const TraceLayer& layer) {
  if (layer.item_domain.empty()) return {layer.count, layer.domain, layer.batch};
  return {layer.item_count, layer.item_domain, layer.item};
}

// [domains, experts] counts with the given domain of each unit.
std::vector<double> domain_table(const std::vector<double>& count, const std::vector<std::int32_t>& domain,
                                 std::size_t domains, std::size_t experts) {
  std::vector<double> table(domains * experts, 0.0);
  for (std::size_t u = 0; u < domain.size(); ++u) {
    double* row = table.data() + static_cast<std::size_t>(domain[u]) * experts;
    for (std::size_t i = 0; i < experts; ++i) row[i] += count[u * experts + i];
  }
  return table;
}

NullComparison no_comparison(const std::string& reason) {
  return {undefined(reason), undefined(reason), undefined(reason), undefined(reason)};
}

NullComparison shuffle_null(const Labelled& units, double measured, std::size_t domains,
                            std::size_t experts) {
  std::vector<double> null;
  for (std::uint32_t r = 0; r < kShuffles; ++r) {
    const auto order =
        random_permutation(static_cast<std::int64_t>(units.domain.size()), draw(Purpose::label_shuffle, r));
    std::vector<std::int32_t> domain(units.domain.size());
    for (std::size_t u = 0; u < domain.size(); ++u)
      domain[u] = units.domain[static_cast<std::size_t>(order[u])];
    null.push_back(
        mutual_information(domain_table(units.count, domain, domains, experts), experts).nmi_sqrt());
  }
  return compare(measured, null);
}

// Selections of the K largest of W h, W [D, M] with N(0, 1) entries, added to the rows of `table`.
void route_at_random(const TraceLayer& layer, const std::vector<std::size_t>& tokens, std::size_t experts,
                     std::size_t top_k, CounterRandom random, std::vector<double>& table) {
  const Labelled units = labelled(layer);
  const std::size_t size = layer.hidden_size();
  std::vector<float> router(size * experts), scores(experts), order(experts);
  for (float& one : router) one = static_cast<float>(random.normal());
  for (const std::size_t token : tokens) {
    std::ranges::fill(scores, 0.0f);
    for (std::size_t d = 0; d < size; ++d) {
      const float hidden = layer.hidden[token * size + d];
      const float* row = router.data() + d * experts;
      for (std::size_t i = 0; i < experts; ++i) scores[i] += hidden * row[i];
    }
    order = scores;
    const auto kth = order.begin() + static_cast<std::ptrdiff_t>(top_k) - 1;
    std::nth_element(order.begin(), kth, order.end(), std::greater<>());
    const std::size_t domain = units.domain_of(token);
    for (std::size_t i = 0; i < experts; ++i) table[domain * experts + i] += scores[i] >= *kth ? 1.0 : 0.0;
  }
}

NullComparison router_null(const Trace& trace, const TraceLayer& layer, std::size_t domains) {
  if (layer.hidden.empty()) return no_comparison("hidden states are not in this trace");
  const std::size_t experts = trace.experts, top_k = trace.top_k;
  const double each = static_cast<double>(layer.hidden_size() * experts) * kRouters;
  const std::size_t most =
      std::clamp<std::size_t>(static_cast<std::size_t>(kMostProducts / each), 1, kMostTokensAtOnce);
  const std::size_t stride = (layer.sampled() + most - 1) / most;
  std::vector<std::size_t> tokens;
  for (std::size_t s = 0; s < layer.sampled(); s += stride) tokens.push_back(s);
  const std::vector<std::uint32_t> routes = sampled_routes(layer, experts, top_k, trace.scores);
  const Labelled units = labelled(layer);
  std::vector<double> table(domains * experts, 0.0), null;
  for (const std::size_t token : tokens) {
    const std::size_t domain = units.domain_of(token);
    for (std::size_t k = 0; k < top_k; ++k) table[domain * experts + routes[token * top_k + k]] += 1.0;
  }
  const double measured = mutual_information(table, experts).nmi_sqrt();
  for (std::uint32_t r = 0; r < kRouters; ++r) {
    std::ranges::fill(table, 0.0);
    route_at_random(layer, tokens, experts, top_k,
                    draw(Purpose::random_router, r, static_cast<std::uint32_t>(layer.layer)), table);
    const MutualInformation random = mutual_information(table, experts);
    null.push_back(random.h_columns > 0.0 ? random.nmi_sqrt() : 0.0);  // one expert for all tells nothing
  }
  if (!std::isfinite(measured) || std::ranges::any_of(null, [](double one) { return !std::isfinite(one); }))
    return no_comparison("the sampled tokens are of one domain or select one expert");
  return compare(measured, null);
}

DomainProfile profile(const Trace& trace, const std::vector<double>& counts, std::size_t domain) {
  DomainProfile found;
  found.name = trace.domains.empty() ? std::to_string(domain) : trace.domains[domain];
  const double of = std::reduce(counts.begin(), counts.end()) /
                    static_cast<double>(std::max<std::size_t>(trace.top_k, 1));  // tokens, if K is known
  for (const double count : counts) found.specialisation.push_back(count / of);
  found.n50 = half_load_experts(counts);
  found.exp_h = exp_entropy(counts);
  found.max_specialisation = std::ranges::max(found.specialisation);
  return found;
}

Specialisation without_nmi(Specialisation found, const std::string& reason) {
  found.nmi = found.nmi_min = found.nmi_corrected = undefined(reason);
  found.shuffle = found.router = no_comparison(reason);
  return found;
}

}  // namespace

NullComparison compare(double measured, const std::vector<double>& null) {
  const double n = static_cast<double>(null.size());
  const double mean = std::reduce(null.begin(), null.end()) / n;
  double squares = 0.0;
  for (const double one : null) squares += (one - mean) * (one - mean);
  const double sd = std::sqrt(squares / (n - 1.0));
  return {{measured, ""},
          {mean, ""},
          {sd, ""},
          sd > 1e-12 ? Quantity{(measured - mean) / sd, ""} : undefined("the null does not vary")};
}

double MutualInformation::nmi_sqrt() const {
  return information / std::sqrt(h_rows * h_columns);
}
double MutualInformation::nmi_min() const {
  return information / std::min(h_rows, h_columns);
}

MutualInformation mutual_information(std::span<const double> table, std::size_t columns) {
  const std::size_t rows = table.size() / columns;
  std::vector<double> row(rows, 0.0), column(columns, 0.0);
  for (std::size_t i = 0; i < table.size(); ++i) {
    row[i / columns] += table[i];
    column[i % columns] += table[i];
  }
  const double total = std::reduce(row.begin(), row.end());
  MutualInformation found;
  found.h_rows = entropy(row, total);
  found.h_columns = entropy(column, total);
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (table[i] > 0.0)
      found.information +=
          table[i] / total * std::log(table[i] * total / (row[i / columns] * column[i % columns]));
  }
  found.bias = static_cast<double>((rows - 1) * (columns - 1)) / (2.0 * total);
  return found;
}

Specialisation specialisation(const Trace& trace, const TraceLayer& layer) {
  Specialisation found;
  const Labelled units = labelled(layer);
  if (units.domain.empty()) return without_nmi(found, "domains are not in this trace");
  const std::size_t experts = trace.experts;
  const auto domains = static_cast<std::size_t>(std::ranges::max(units.domain)) + 1;
  const std::vector<double> table = domain_table(units.count, units.domain, domains, experts);
  for (std::size_t d = 0; d < domains; ++d) {
    const std::vector<double> counts(table.begin() + static_cast<std::ptrdiff_t>(d * experts),
                                     table.begin() + static_cast<std::ptrdiff_t>((d + 1) * experts));
    if (std::reduce(counts.begin(), counts.end()) > 0.0) found.domains.push_back(profile(trace, counts, d));
  }
  if (found.domains.size() < 2) return without_nmi(found, "a single domain");
  const MutualInformation information = mutual_information(table, experts);
  if (!(information.h_columns > 0.0)) return without_nmi(found, "a single expert takes everything");
  found.nmi = {information.nmi_sqrt(), ""};
  found.nmi_min = {information.nmi_min(), ""};
  found.nmi_corrected = {
      (information.information - information.bias) / std::sqrt(information.h_rows * information.h_columns),
      ""};
  found.shuffle = units.domain.size() > found.domains.size()
                      ? shuffle_null(units, found.nmi.value, domains, experts)
                      : no_comparison("each domain has a single batch: nothing to shuffle");
  found.router = router_null(trace, layer, domains);
  return found;
}

}  // namespace exfusion::analysis
