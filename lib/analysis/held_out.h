// How well models fitted on the even batches predict the loads of the odd ones: sum_i |m_i(odd) - predicted|.
#pragma once
#include "analysis/bootstrap.h"
#include "analysis/trace.h"

namespace exfusion::analysis {

struct HeldOutL1 {
  Quantity mfg;           // equilibrium at the even batches' qualities and their E2
  Quantity softmax_t;     // softmax(q / T), T fitted by L1
  Quantity softmax_1;     // softmax(q)
  Quantity uniform;       // 1 / M
  Quantity mean_prob;     // the even batches' mean router probability
  Quantity multi_type;    // the multi-type game of kHeadlineTypes types (analysis/multi_type.h)
  Quantity half_vs_half;  // the even batches' loads. Holds the noise of both halves: no lower bound
};

// All but multi_type, under Q2.
HeldOutL1 held_out_l1(const TraceLayer& layer, std::size_t experts);

// The range in which E2 looks for gamma, from the loads that it is fitted to.
struct SearchRange {
  double low = 0.0, high = 0.0;
};
SearchRange gamma_range(const std::vector<double>& share);

// Shares of the counts, without smoothing.
std::vector<double> raw_shares(const std::vector<double>& counts);

}  // namespace exfusion::analysis
