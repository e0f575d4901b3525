// exfusion-export: a trained model in the form that other tools load.
#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "program.h"
#include "train/average.h"
#include "train/export.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;

constexpr const char* kUsage =
    "exfusion-export RUN|CHECKPOINT --to timm|moe|experts -o DIR\n"
    "exfusion-export RUN --average K [--greedy] -o DIR\n\n"
    "Writes the fused, dense model as timm loads it: model.safetensors, config.json and a model card. The "
    "files are read\n"
    "back and must give the same logits, bit for bit, before the folder appears. --average writes the mean "
    "of a "
    "run's last\n"
    "K checkpoints; with --greedy, of those of them that do not lower its accuracy on the images held out by "
    "data.validation.\n\n"
    "  exfusion-export runs/quickstart --to timm -o vit/\n"
    "  python -c \"import timm; timm.create_model('local-dir:vit', pretrained=True)\"\n";

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "model"};
  program.options.add_options()(
      "to", po::value<std::string>()->default_value("timm"),
      "timm; moe for a mixture of experts that has no dense form; experts: timm, and the experts "
      "of a run with fusion.materialize: false beside it")(
      "out,o", po::value<std::string>()->value_name("DIR"), "the folder to write")(
      "what", po::value<std::string>()->default_value("last"), "which model of a run: last, best, ema")(
      "average", po::value<std::int64_t>()->value_name("K"), "the mean of the run's last K checkpoints")(
      "greedy", po::bool_switch(), "with --average: only those that help on the held-out images")(
      "overwrite", po::bool_switch(), "replace DIR if it exists")(
      "json", po::bool_switch(), "print one JSON object with the result on stdout");
  return program;
}

void check_options(const po::variables_map& given) {
  if (!given.count("model")) throw UsageError("give a run or a checkpoint; see --help");
  if (!given.count("out")) throw UsageError("give the folder to write: -o DIR");
  const std::string to = given["to"].as<std::string>();
  if (to != "timm" && to != "moe" && to != "experts")
    throw UsageError("--to " + to + ": the formats are: timm, moe, experts");
  const std::string what = given["what"].as<std::string>();
  if (what != "last" && what != "best" && what != "ema")
    throw UsageError("--what " + what + ": choose last, best or ema");
  if (given["greedy"].as<bool>() && !given.count("average"))
    throw UsageError("--greedy chooses among the checkpoints of an average: give --average K too");
  if (!given.count("average")) return;
  if (given["average"].as<std::int64_t>() < 1) throw UsageError("--average must be at least 1");
  if (what != "last") throw UsageError("--average is of checkpoints: --what does not go with it");
}

nlohmann::json described(const Soup& soup) {
  const auto number = [](const std::optional<double>& value) {
    return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
  };
  nlohmann::json members = nlohmann::json::array();
  for (const SoupMember& member : soup.members)
    members.push_back({{"step", member.step},
                       {"validation_accuracy", number(member.validation_accuracy)},
                       {"kept", member.kept}});
  return {{"checkpoints", members}, {"validation_accuracy", number(soup.validation_accuracy)}};
}

void log_soup(const Soup& soup) {
  for (const SoupMember& member : soup.members)
    log_info("step {}: {}{}", member.step, member.kept ? "in the average" : "left out",
             member.validation_accuracy
                 ? fmt::format(", alone {:.4f} on the held-out images", *member.validation_accuracy)
                 : "");
  if (soup.validation_accuracy)
    log_info("the average: {:.4f} on the held-out images", *soup.validation_accuracy);
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  check_options(given);
  const std::string from = given["model"].as<std::string>();
  const std::filesystem::path out = given["out"].as<std::string>();
  Soup soup;
  if (given.count("average")) {
    soup = average_checkpoints(from, given["average"].as<std::int64_t>(), given["greedy"].as<bool>());
    log_soup(soup);
  } else {
    soup.model = load_model(from, given["what"].as<std::string>());
  }
  const LoadedModel& source = soup.model;
  const std::string to = given["to"].as<std::string>();
  const auto write = to == "moe" ? export_moe : to == "experts" ? export_experts : export_timm;
  write(source, out, given["overwrite"].as<bool>());
  log_info("{} ({}) exported to {}: logits bit-equal after reading back", source.origin.string(), source.what,
           out.string());
  if (given["json"].as<bool>()) {
    nlohmann::json result = {{"from", source.origin.string()},
                             {"what", source.what},
                             {"step", source.step},
                             {"export", out.string()}};
    if (given.count("average")) result["average"] = described(soup);
    std::cout << result.dump() << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-export", [&] { return exfusion::run(argc, argv); });
}
