// exfusion-upcycle: makes experts of a trained dense model's FFNs, without training.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"
#include "fusion/expert_init.h"
#include "nn/layer_selection.h"
#include "program.h"
#include "train/upcycle.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;

constexpr const char* kUsage =
    "exfusion-upcycle RUN|CHECKPOINT|DIR -o DIR --experts N --init copy|copy_noise|drop|split\n\n"
    "Writes what a run with this fusion.init would start from: model.safetensors (the experts fused, which "
    "timm loads),\n"
    "config.json, experts.safetensors and upcycle.json. A recipe takes it with fusion.from: DIR and no "
    "fusion.init.\n\n"
    "  exfusion-upcycle runs/dense --experts 4 --init drop -o upcycled/\n"
    "  exfusion-train recipes/quickstart.yaml --set fusion.from=upcycled/\n";

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "model"};
  program.options.add_options()("out,o", po::value<std::string>()->value_name("DIR"), "the folder to write")(
      "experts", po::value<std::string>()->value_name("N"), "experts per FFN")(
      "init", po::value<std::string>()->value_name("WORD"),
      "how FFNs become experts: copy, copy_noise, drop, split")(
      "noise", po::value<std::string>()->value_name("SIGMA"), "copy_noise: relative to the tensor's std")(
      "drop-ratio", po::value<std::string>()->value_name("R"), "drop: part of the hidden units drawn anew")(
      "permute", po::bool_switch(), "drop: put the hidden units of each expert into an own order")(
      "seed", po::value<std::string>()->default_value("0"), "of the draws")(
      "layers", po::value<std::string>()->default_value("all"),
      "which blocks, as fusion.layers: all, last:2, every:2 or [0, 3]")("overwrite", po::bool_switch(),
                                                                        "replace DIR if it exists")(
      "json", po::bool_switch(), "print one JSON object with the result on stdout");
  return program;
}

struct Choices {
  FusionConfig fusion;
  std::uint64_t seed = 0;
};

// The options are recipe values: checked by who owns the keys.
Choices parse_choices(const po::variables_map& given, std::int64_t blocks) {
  std::vector<std::string> sets = {"seed=" + given["seed"].as<std::string>(),
                                   "fusion.from=" + nlohmann::json(given["model"].as<std::string>()).dump()};
  for (const auto& [option, key] : {std::pair{"experts", "experts"},
                                    {"init", "init"},
                                    {"noise", "noise"},
                                    {"drop-ratio", "drop_ratio"},
                                    {"layers", "layers"}}) {
    if (given.count(option))
      sets.push_back(fmt::format("fusion.{}={}", key, given[option].as<std::string>()));
  }
  if (given["permute"].as<bool>()) sets.emplace_back("fusion.permute=true");
  Recipe recipe = Recipe::parse("fusion: {}", "command line", sets);
  Section root = recipe.root(), section = root.child("fusion");
  Choices choices;
  choices.seed = static_cast<std::uint64_t>(root.in_range<std::int64_t>("seed", 0, 0, INT64_MAX));
  choices.fusion.weights = "memory";  // whether copies can separate is decided by who trains them
  choices.fusion.experts = section.in_range<std::int64_t>("experts", 0, 1, kMaxExperts);
  parse_expert_init(section, choices.fusion);
  choices.fusion.layers = section.words("layers", {"all"});
  if (const std::string problem = layer_selection_problem(choices.fusion.layers, blocks); !problem.empty())
    section.problem("layers", problem);
  recipe.finish();
  return choices;
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  if (!given.count("model")) throw UsageError("give a run, a checkpoint or an exported model; see --help");
  for (const char* option : {"out", "experts", "init"}) {
    if (!given.count(option)) throw UsageError(fmt::format("--{} is missing; see --help", option));
  }
  const LoadedModel source = load_model(given["model"].as<std::string>(), "last");
  const Choices choices = parse_choices(given, source.config.vit.depth);
  const std::filesystem::path out = given["out"].as<std::string>();
  const std::vector<std::string> ffns =
      write_upcycled(source, choices.fusion, choices.seed, out, given["overwrite"].as<bool>());
  log_info("{}: {} FFNs with {} experts each ({}) written to {}, the same after reading back",
           source.origin.string(), ffns.size(), choices.fusion.experts, choices.fusion.init, out.string());
  if (given["json"].as<bool>())
    std::cout << nlohmann::json({{"from", source.origin.string()},
                                 {"out", out.string()},
                                 {"experts", choices.fusion.experts},
                                 {"init", choices.fusion.init},
                                 {"seed", choices.seed},
                                 {"ffns", ffns}})
                     .dump()
              << "\n";
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-upcycle", [&] { return exfusion::run(argc, argv); });
}
