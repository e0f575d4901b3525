// exfusion-export: a trained model in the form that other tools load.
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "program.h"
#include "train/export.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;

constexpr const char* kUsage =
    "exfusion-export RUN|CHECKPOINT --to timm -o DIR\n\n"
    "Writes the fused, dense model as timm loads it: model.safetensors, config.json and a model card. The "
    "files are read\n"
    "back and must give the same logits, bit for bit, before the folder appears.\n\n"
    "  exfusion-export runs/quickstart --to timm -o vit/\n"
    "  python -c \"import timm; timm.create_model('local-dir:vit', pretrained=True)\"\n";

int run(int argc, char** argv) {
  ProgramOptions program{kUsage, po::options_description("Options"), "model"};
  program.options.add_options()("to", po::value<std::string>()->default_value("timm"), "the format: timm")(
      "out,o", po::value<std::string>()->value_name("DIR"), "the folder to write")(
      "what", po::value<std::string>()->default_value("last"), "which model of a run: last, best, ema")(
      "overwrite", po::bool_switch(), "replace DIR if it exists")(
      "json", po::bool_switch(), "print one JSON object with the result on stdout");
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  if (!given.count("model")) throw UsageError("give a run or a checkpoint; see --help");
  if (!given.count("out")) throw UsageError("give the folder to write: -o DIR");
  if (given["to"].as<std::string>() != "timm")
    throw UsageError("--to " + given["to"].as<std::string>() + ": the formats are: timm");
  const std::string what = given["what"].as<std::string>();
  if (what != "last" && what != "best" && what != "ema")
    throw UsageError("--what " + what + ": choose last, best or ema");

  const std::filesystem::path out = given["out"].as<std::string>();
  const LoadedModel source = load_model(given["model"].as<std::string>(), what);
  export_timm(source, out, given["overwrite"].as<bool>());
  log_info("{} ({}) exported to {}: logits bit-equal after reading back", source.origin.string(), what,
           out.string());
  if (given["json"].as<bool>())
    std::cout << nlohmann::json({{"from", source.origin.string()},
                                 {"what", what},
                                 {"step", source.step},
                                 {"export", out.string()}})
                     .dump()
              << "\n";
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-export", [&] { return exfusion::run(argc, argv); });
}
