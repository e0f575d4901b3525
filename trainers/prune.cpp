// exfusion-prune: a mixture of experts with fewer experts, in one shot.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "program.h"
#include "prune/checkpoint_prune.h"
#include "prune/hf_prune.h"
#include "prune/scores_file.h"
#include "prune/weight_scores.h"
#include "train/export.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;

constexpr const char* kUsage =
    "exfusion-prune MODEL --score NAME --keep SHARE [--scores FILE] -o DIR\n\n"
    "Takes the experts with the lowest scores out of a top-k mixture of experts, as many in every layer: "
    "their "
    "rows of the\n"
    "router and their weights. What remains is not trained further; gates are made as in training.\n\n"
    "MODEL is a folder of Hugging Face's transformers (Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE; one file or "
    "shards), or a run, a\n"
    "checkpoint or an export of a model.ffn: topk of ours. DIR gets the same form, for transformers or "
    "exfusion-eval.\n\n"
    "Scores from a routing trace or from exfusion-analyze's JSON, given by --scores; low ones are pruned:\n"
    "  man, msan               mean (squared) norm of an expert's outputs: when the task is not known\n"
    "  gate_norm, gate_norm_sq sums of (gate * norm), (gate * norm)^2: for the task that was traced\n"
    "  frequency, seer, ean, reap, hope_diagonal, rsd, taylor, and s_<b><alpha><beta>; docs/pruning.md\n"
    "Scores by weights alone: aimer, weight_norm, router_norm.\n\n"
    "  python experiments/hf_trace/hf_trace.py olmoe/ code.txt prose.txt -o olmoe.h5\n"
    "  exfusion-prune olmoe/ --score msan --keep 0.5 --scores olmoe.h5 -o olmoe-half/\n";

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "model"};
  program.options.add_options()("score", po::value<std::string>()->value_name("NAME"),
                                "what experts are ranked by")(
      "keep", po::value<double>()->value_name("SHARE"),
      "share of the experts that remain, above 0 to 1, rounded up")(
      "scores", po::value<std::string>()->value_name("FILE"),
      "a trace (.h5, or a CSV of counts) or the JSON of exfusion-analyze")(
      "out,o", po::value<std::string>()->value_name("DIR"), "the folder to write; must not exist")(
      "json", po::bool_switch(), "print one JSON object with the experts that remain on stdout");
  return program;
}

void check_options(const po::variables_map& given) {
  for (const auto& [name, what] : {std::pair{"model", "a model"},
                                   {"score", "--score NAME"},
                                   {"keep", "--keep SHARE"},
                                   {"out", "the folder to write: -o DIR"}}) {
    if (!given.count(name)) throw UsageError(fmt::format("give {}; see --help", what));
  }
  const std::string score = given["score"].as<std::string>();
  if (needs_weights_alone(score) && given.count("scores"))
    throw UsageError(fmt::format("--score {} comes from the weights: leave --scores out", score));
  if (!needs_weights_alone(score)) check_file_score(score);
  if (!needs_weights_alone(score) && !given.count("scores"))
    throw UsageError(fmt::format("--score {} needs --scores FILE; by weights alone there are: {}", score,
                                 fmt::join(weight_score_names(), ", ")));
  if (std::filesystem::exists(given["out"].as<std::string>()))
    throw RunFolderError(given["out"].as<std::string>() + ": exists; choose another folder");
}

// Which experts remain. `model` has weight_scores; it has experts in `layers`.
template <class M>
KeptExperts choose(const po::variables_map& given, const M& model, const std::vector<std::int64_t>& layers,
                   std::int64_t experts, std::int64_t top_k) {
  const std::int64_t number = kept_number(given["keep"].as<double>(), experts, top_k);
  const std::string score = given["score"].as<std::string>();
  if (needs_weights_alone(score)) return kept_experts(weight_scores(model, score), number);
  const std::string file = given["scores"].as<std::string>();
  const ScoresByLayer scores = read_scores(file, score);
  expect_scores_of(scores, layers, experts, file);
  return kept_experts(scores, number);
}

KeptExperts prune(const po::variables_map& given, const std::filesystem::path& path,
                  const std::filesystem::path& out) {
  if (is_hf_model(path)) {
    const HfModel model = read_hf_model(path);
    const KeptExperts kept = choose(given, model, model.layers, model.experts, model.top_k);
    write_pruned_hf(model, kept, out);
    return kept;
  }
  const LoadedModel model = load_model(path, "last");
  const std::vector<std::int64_t> blocks = topk_blocks(model);
  const FfnConfig& ffn = model.config.vit.ffn;
  const KeptExperts kept = choose(given, model, blocks, ffn.experts, ffn.top_k);
  const std::string how =
      fmt::format("{}, {} of {} experts kept by {}", model.what, kept.begin()->second.size(), ffn.experts,
                  given["score"].as<std::string>());
  export_moe(pruned(model, kept, how), out, false);
  return kept;
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  check_options(given);
  const std::string out = given["out"].as<std::string>();
  const KeptExperts kept = prune(given, given["model"].as<std::string>(), out);
  nlohmann::json layers = nlohmann::json::object();
  for (const auto& [layer, experts] : kept) {
    log_info("layer {}: experts {} remain", layer, fmt::join(experts, " "));
    layers[std::to_string(layer)] = experts;
  }
  log_info("written: {}", out);
  if (given["json"].as<bool>())
    std::cout << nlohmann::json({{"out", out}, {"score", given["score"].as<std::string>()}, {"kept", layers}})
                     .dump()
              << "\n";
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-prune", [&] { return exfusion::run(argc, argv); });
}
