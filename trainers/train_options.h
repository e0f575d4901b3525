// The command line of exfusion-train.
#pragma once
#include "program.h"

namespace exfusion {

ProgramOptions train_options();

// Throws UsageError where options do not go together.
void check_options(const boost::program_options::variables_map& given);

// Prints the names that a recipe may choose from (--list).
void list_choices();

}  // namespace exfusion
