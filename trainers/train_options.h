// The command line of exfusion-train.
#pragma once
#include <string>
#include <vector>

#include "program.h"

namespace exfusion {

inline constexpr const char* kAuto = "auto";  // --resume auto

ProgramOptions train_options();

// Throws UsageError where options do not go together.
void check_options(const boost::program_options::variables_map& given);

// The ranks that --nproc asks for, 0 without it. Throws UsageError where a launcher has started this one.
int ranks_to_start(const boost::program_options::variables_map& given);

// The arguments of each of those ranks.
std::vector<std::string> without_nproc(int argc, char** argv);

// Prints the names that a recipe may choose from (--list).
void list_choices();

}  // namespace exfusion
