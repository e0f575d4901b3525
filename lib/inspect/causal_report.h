// What knock-outs showed, as fields of the JSON.
#pragma once
#include <nlohmann/json.hpp>
#include <vector>

#include "observe/knock_out.h"

namespace exfusion {

// What one FFN's experts are ranked by: names, and their values from the even batches (analysis/causal.h);
// and which classes come to which expert, [C, N].
struct ExpertScores {
  std::vector<std::string> names;
  analysis::ScoresOfBatches of_batches;
  std::vector<double> preference;
};

// Adds to each FFN's layer (`layers`, whose `layer` is the block) and to `model` what leaving experts out
// does, with Braess shares, interaction contrasts and rank correlations. `scores`: one per FFN.
void put_knock_outs(const KnockOuts& found, const std::vector<ExpertScores>& scores,
                    nlohmann::ordered_json& layers, nlohmann::ordered_json& model);

}  // namespace exfusion
