// exfusion-eval: accuracy and loss of a trained model on a test set.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "core/recipe.h"
#include "io/safetensors.h"
#include "program.h"
#include "train/evaluation.h"
#include "train/model_source.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;

constexpr const char* kUsage =
    "exfusion-eval DIR|RUN|CHECKPOINT [--data NAME] [--root DIR]\n\n"
    "Evaluates a run, a checkpoint or an exported model on the whole test set. A run and a checkpoint know "
    "their data; for\n"
    "an exported model, name it.\n\n"
    "  exfusion-eval runs/quickstart\n"
    "  exfusion-eval vit/ --data fashion_mnist --logits logits.safetensors --json\n";

ProgramOptions describe_options() {
  ProgramOptions program{kUsage, po::options_description("Options"), "model"};
  program.options.add_options()("data", po::value<std::string>()->value_name("NAME"),
                                "the data set (default: the run's own)")(
      "root", po::value<std::string>()->value_name("DIR"), "its folder, where it has no default")(
      "what", po::value<std::string>()->default_value("last"), "which model of a run: last, best, ema")(
      "precision", po::value<std::string>()->default_value("fp32"), "fp32 or bf16")(
      "logits", po::value<std::string>()->value_name("FILE"),
      "write logits [images, classes] fp32 and labels [images] int64 (safetensors)")(
      "threads", po::value<int>()->value_name("N"), "threads of the computation")(
      "json", po::bool_switch(), "print one JSON object on stdout");
  return program;
}

// The data to evaluate on, with the model's own normalisation.
DataConfig choose_data(const po::variables_map& given, const LoadedModel& loaded) {
  DataConfig data;
  if (given.count("data")) {
    if (!loaded.run && given["data"].as<std::string>() == "synthetic")
      log_warning(
          "synthetic images are made up from a seed and a recipe: these are of seed 0, not those that the "
          "model was trained for; give its run instead");
    Recipe recipe =
        Recipe::parse("data: {}", "command line", {"data.name=" + given["data"].as<std::string>()});
    data = DataConfig::parse(recipe.root().child("data"));
    recipe.finish();
  } else if (loaded.run) {
    data = loaded.run->data;
  } else {
    throw UsageError("an exported model does not know its data: give --data NAME");
  }
  if (given.count("root")) data.root = given["root"].as<std::string>();
  data.validation = 0;
  data.mean = loaded.mean;
  data.std = loaded.std;
  return data;
}

// Before the evaluation, whose result would be lost otherwise.
void check_writable(const fs::path& file) {
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  if (!fs::is_directory(folder))
    throw UsageError("--logits " + file.string() + ": there is no folder " + folder.string());
  if (fs::exists(file) && file.extension() != ".safetensors")
    throw UsageError("--logits " + file.string() + ": exists and is no .safetensors file; it is left alone");
}

int run(int argc, char** argv) {
  const ProgramOptions program = describe_options();
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  if (!given.count("model")) throw UsageError("give a run, a checkpoint or an exported model; see --help");
  const std::string precision = given["precision"].as<std::string>(), what = given["what"].as<std::string>();
  if (precision != "fp32" && precision != "bf16")
    throw UsageError("--precision " + precision + ": choose fp32 or bf16");
  if (what != "last" && what != "best" && what != "ema")
    throw UsageError("--what " + what + ": choose last, best or ema");
  if (given.count("threads")) {
    if (given["threads"].as<int>() < 1 || given["threads"].as<int>() > 1024)
      throw UsageError("--threads must be 1 to 1024");
    at::set_num_threads(given["threads"].as<int>());
  }

  if (given.count("logits")) check_writable(given["logits"].as<std::string>());
  const LoadedModel loaded = load_model(given["model"].as<std::string>(), what);
  const DataConfig data = choose_data(given, loaded);
  const std::uint64_t seed = loaded.run ? loaded.run->seed : 0;
  const Datasets datasets = make_datasets(data, seed, loaded.config.image_shape());
  const Dataset& test = *datasets.test;
  at::Tensor logits;
  const Evaluation result =
      evaluate(*loaded.model, test, data, loaded.config.vit.classes, precision, &logits);

  if (given.count("logits")) {
    const at::Tensor labels = at::empty({test.size()}, at::kLong);
    for (std::int64_t i = 0; i < test.size(); ++i) labels.mutable_data_ptr<std::int64_t>()[i] = test.label(i);
    write_safetensors(given["logits"].as<std::string>(), {{"logits", logits}, {"labels", labels}});
  }
  const double rate = static_cast<double>(result.samples) / result.seconds;
  if (given["json"].as<bool>()) {
    std::cout << nlohmann::json({{"accuracy", result.accuracy},
                                 {"loss", result.loss},
                                 {"samples", result.samples},
                                 {"samples_per_second", rate}})
                     .dump()
              << "\n";
  } else {
    std::cout << fmt::format("accuracy {:.4f}  loss {:.4f}  {} samples  {:.0f} samples/s  ({}, {})\n",
                             result.accuracy, result.loss, result.samples, rate, data.name, precision);
  }
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("exfusion-eval", [&] { return exfusion::run(argc, argv); });
}
