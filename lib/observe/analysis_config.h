// The recipe's `analysis` section.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace exfusion {

class Section;

struct AnalysisConfig {
  std::vector<std::string> groups;  // of analysis_group_names(); empty: off
  std::string every = "log2";       // log2 (steps 1, 2, 4, … and the last), checkpoint, steps
  std::vector<std::int64_t> steps;  // every: steps; ascending
  std::int64_t batches = 10;        // held-out batches, and images in each
  std::int64_t batch = 12;
  static AnalysisConfig parse(Section section);
  bool on() const { return !groups.empty(); }
  bool wants(const std::string& group) const;
  // `checkpoint`: a checkpoint is due after this step by checkpoint.every_*.
  bool due(std::int64_t step, bool checkpoint, bool last) const;
};

std::vector<std::string> analysis_group_names();

}  // namespace exfusion
