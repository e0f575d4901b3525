#include "program.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <exception>
#include <iostream>
#include <new>

#include "core/allocation.h"
#include "core/error.h"
#include "core/last_words.h"
#include "train/versions.h"

namespace exfusion {

namespace po = boost::program_options;

po::variables_map parse_options(const ProgramOptions& program, int argc, char** argv) {
  po::options_description all = program.options;
  all.add_options()("help,h", "print this text")("version", "print the versions of exfusion and libtorch");
  po::positional_options_description positional;
  if (!program.positional.empty()) {
    all.add_options()(program.positional.c_str(), po::value<std::string>());
    positional.add(program.positional.c_str(), 1);
  }
  po::variables_map given;
  try {
    const int style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
    po::store(po::command_line_parser(argc, argv).options(all).positional(positional).style(style).run(),
              given);
    po::notify(given);
    for (const auto& [name, value] : given) {
      const auto* text = boost::any_cast<std::string>(&value.value());
      if (text && text->empty() && name != "help" && name != "version")
        throw UsageError("--" + name + " is empty; see --help");
    }
  } catch (const po::too_many_positional_options_error&) {
    throw UsageError("too many arguments; see --help");
  } catch (const po::error& error) {
    throw UsageError(fmt::format("{}; see --help", error.what()));
  }
  return given;
}

bool answered(const ProgramOptions& program, const po::variables_map& given) {
  if (given.count("help")) {
    po::options_description all("Options", 110);
    all.add(program.options);
    all.add_options()("help,h", "print this text")("version", "print the versions of exfusion and libtorch");
    std::cout << program.usage << "\n" << all;
    return true;
  }
  if (given.count("version")) {
    std::cout << version_text() << "\n";
    return true;
  }
  return false;
}

int run_program(const std::string& name, const std::function<int()>& body) {
  const auto report = [&](const std::string& message) { say_last_words(name, message); };
  keep_freed_memory();
  try {
    return body();
  } catch (const Error& error) {
    report(error.what());
    return error.exit_code;
  } catch (const c10::Error& error) {
    report(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    report("out of memory");
  } catch (const std::exception& error) {
    report(error.what());
  }
  return 1;
}

}  // namespace exfusion
