// The command line of exfusion-train.
#pragma once
#include <string>
#include <vector>

#include "core/recipe.h"
#include "program.h"
#include "train/run_config.h"

namespace exfusion {

ProgramOptions train_options();

bool resumes_automatically(const boost::program_options::variables_map& given);  // --resume auto

// Throws UsageError where options do not go together.
void check_options(const boost::program_options::variables_map& given);

// The recipe of a run that is gone on with. Throws UsageError where --set changes what a run keeps.
RunConfig parse_resumed(Recipe& recipe);

// The ranks that --nproc asks for, 0 without it. Throws UsageError where a launcher has started this one.
int ranks_to_start(const boost::program_options::variables_map& given);

// The arguments of each of those ranks.
std::vector<std::string> without_nproc(int argc, char** argv);

// Prints the names that a recipe may choose from (--list).
void list_choices();

}  // namespace exfusion
