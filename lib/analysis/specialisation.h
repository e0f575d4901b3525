// Which experts serve which domain, and whether more than chance and more than hidden states explain
// (definitions: Chaudhari et al., "MoE Lens", arXiv 2603.05806, second-hand; nulls are this project's).
#pragma once
#include <span>
#include <string>
#include <vector>

#include "analysis/bootstrap.h"
#include "analysis/trace.h"

namespace exfusion::analysis {

// Of a [rows, columns] table of counts, in nats.
struct MutualInformation {
  double information = 0.0, h_rows = 0.0, h_columns = 0.0;
  double bias = 0.0;  // Miller and Madow: (rows - 1)(columns - 1) / (2 total), what chance adds
  // NaN when one of the entropies is 0.
  double nmi_sqrt() const;  // information / sqrt(h_rows h_columns)
  double nmi_min() const;   // information / min(h_rows, h_columns)
};
MutualInformation mutual_information(std::span<const double> table, std::size_t columns);

struct DomainProfile {
  std::string name;
  std::vector<double> specialisation;  // [M]: share of the domain's tokens that select the expert; of its
                                       // selections in a CSV of counts
  std::size_t n50 = 0;                 // experts that carry half of the selections
  double exp_h = 0.0, max_specialisation = 0.0;
};

// A statistic under a null: mean and deviation over repetitions, and how far the measured one lies from it.
struct NullComparison {
  Quantity measured, mean, sd, z;
};

// With at least two repetitions, all finite; z is undefined where they do not vary.
NullComparison compare(double measured, const std::vector<double>& null);

struct Specialisation {
  std::vector<DomainProfile> domains;
  Quantity nmi, nmi_min, nmi_corrected;  // domain and expert, over all batches; corrected: by `bias`
  NullComparison shuffle;                // nmi when batches, or items, swap their domains
  NullComparison router;                 // nmi of the sampled tokens against random linear routers on their
                                         // hidden states
};
// Of the domains of items (images) where the layer has them, else of those of batches.
Specialisation specialisation(const Trace& trace, const TraceLayer& layer);

}  // namespace exfusion::analysis
