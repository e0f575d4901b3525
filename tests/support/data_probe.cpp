// Shows Python what the data layer reads: data_probe RECIPE CHANNELS SIZE CLASSES SEED GLOBAL_BATCH STEP OUT,
// where RECIPE is YAML with a `data` section. Writes raw arrays into the folder OUT:
// {train,validation,test}.{pixels,labels} (uint8, int64), {batch,evaluation}.{images,targets,samples}
// (float32, float32, int64); prints the checksum.
#include <fmt/format.h>

#include <fstream>
#include <string>

#include "core/error.h"
#include "core/recipe.h"
#include "data/loader.h"

using namespace exfusion;

namespace {

void write_raw(const std::string& path, const void* bytes, std::size_t size) {
  std::ofstream(path, std::ios::binary | std::ios::app)
      .write(static_cast<const char*>(bytes), static_cast<long>(size));
}

void write_split(const std::string& path, const Dataset* split) {
  if (split == nullptr) return;
  for (std::int64_t index = 0; index < split->size(); ++index) {
    const std::int64_t label = split->label(index);
    write_raw(path + ".labels", &label, sizeof label);
    write_raw(path + ".pixels", split->image(index).data(), split->image(index).size());
  }
}

void write_batch(const std::string& path, const Batch& batch) {
  write_raw(path + ".images", batch.images.data_ptr(), batch.images.nbytes());
  write_raw(path + ".targets", batch.targets.data_ptr(), batch.targets.nbytes());
  write_raw(path + ".samples", batch.samples.data(), batch.samples.size() * sizeof(std::int64_t));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 9) throw UsageError("data_probe RECIPE CHANNELS SIZE CLASSES SEED GLOBAL_BATCH STEP OUT");
    Recipe recipe = Recipe::parse(argv[1], "recipe");
    LoaderConfig config;
    config.data = DataConfig::parse(recipe.root().child("data"));
    recipe.finish();
    const ImageShape shape{std::stoll(argv[2]), std::stoll(argv[3]), std::stoll(argv[4])};
    config.seed = std::stoull(argv[5]);
    config.global_batch = std::stoll(argv[6]);
    config.classes = shape.classes;
    const std::string out = std::string(argv[8]) + "/";
    const Datasets data = make_datasets(config.data, config.seed, shape);
    write_split(out + "train", data.train.get());
    write_split(out + "validation", data.validation.get());
    write_split(out + "test", data.test.get());
    write_batch(out + "batch", make_batch(*data.train, config, std::stoll(argv[7])));
    write_batch(out + "evaluation",
                evaluation_batch(*data.test, config.data, shape.classes, 0, data.test->size()));
    fmt::print("{}\n", data.checksum);
    return 0;
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return error.exit_code;
  }
}
