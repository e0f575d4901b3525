// What the programs share: options, errors into exit codes, one JSON object on stdout.
#pragma once
#include <boost/program_options.hpp>
#include <functional>
#include <string>
#include <vector>

namespace exfusion {

struct ProgramOptions {
  std::string usage;  // the lines above the option list
  boost::program_options::options_description options;
  std::string positional;  // name of the one positional argument, "" for none
};

// Adds --help and --version and parses strictly: no abbreviations, no stray words, each option once (but
// --set). Throws UsageError naming the offending word.
boost::program_options::variables_map parse_options(const ProgramOptions& program, int argc, char** argv);

// Prints --help (stdout) or --version and returns true when one was asked for.
bool answered(const ProgramOptions& program, const boost::program_options::variables_map& given);

// Runs `body` and turns what it throws into one line on stderr (RecipeError: one per problem) and an exit
// code: 2 bad input, 1 failure, 128 + signal after a signal.
int run_program(const std::string& name, const std::function<int()>& body);

}  // namespace exfusion
