// Question: how many images a second does one core feed, and do the loader's threads share one data set?
// Command: ./dev bench loader
// Every data source with the augmentations of every shipped recipe. A round is one epoch by a loader with one
// thread, while this one only waits.
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "bench.h"
#include "core/error.h"
#include "core/recipe.h"
#include "data/loader.h"
#include "train/run_config.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;

constexpr double kImagesPerSecond = 20'000.0;  // the bar, per core
constexpr double kSharedBar = 0.25;  // a copy of the data set would be 1; a thread's own batches are not 0

constexpr const char* kUsage =
    "bench_loader [--recipes LIST] [--sources LIST] [--images N]\n\n"
    "Images a second that one core augments, over 20,000; and the memory that a second thread adds, over "
    "the\n"
    "size of the data set.\n";

// A folder for the data sets that are read from files; gone at the end.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "exfusion_bench_XXXXXX").string();
    if (!mkdtemp(name.data())) throw FileError(name + ": cannot be made");
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  fs::path path;
};

// A made-up split as bytes, to be written in a source's format.
struct Images {
  explicit Images(const Dataset& split) : shape{split.channels, split.height, split.width} {
    for (std::int64_t i = 0; i < split.size(); ++i) {
      const auto image = split.image(i);
      pixels.insert(pixels.end(), image.begin(), image.end());
      labels.push_back(split.label(i));
    }
  }
  std::array<std::int64_t, 3> shape;
  std::vector<std::uint8_t> pixels;
  std::vector<std::int64_t> labels;
};

void write_idx_file(const fs::path& file, std::uint8_t rank, const std::vector<std::int64_t>& sizes,
                    const std::vector<std::uint8_t>& bytes) {
  std::vector<std::uint8_t> header = {0, 0, 8, rank};
  for (const std::int64_t size : sizes) {
    for (const int shift : {24, 16, 8, 0}) header.push_back(static_cast<std::uint8_t>(size >> shift));
  }
  std::ofstream stream(file, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(header.data()), static_cast<std::streamsize>(header.size()));
  stream.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream.flush()) throw FileError(file.string() + ": cannot be written");
}

void write_idx(const fs::path& folder, const std::string& split, const Images& images) {
  const auto count = static_cast<std::int64_t>(images.labels.size());
  const std::string name = split == "test" ? "t10k" : split;
  write_idx_file(folder / (name + "-images-idx3-ubyte"), 3, {count, images.shape[1], images.shape[2]},
                 images.pixels);
  write_idx_file(folder / (name + "-labels-idx1-ubyte"), 1, {count},
                 {images.labels.begin(), images.labels.end()});
}

void write_hdf5(const fs::path& folder, const std::string& split, const Images& images) {
  const fs::path path = folder / (split + ".h5");
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  bool written = file >= 0;
  const auto write = [&](const char* name, const std::vector<hsize_t>& sizes, hid_t type, const void* data) {
    const hid_t space = H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr);
    const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    written = written && H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0;
    H5Dclose(set), H5Sclose(space);
  };
  const auto size = [&](std::size_t i) { return static_cast<hsize_t>(images.shape[i]); };
  write("images", {images.labels.size(), size(0), size(1), size(2)}, H5T_NATIVE_UINT8, images.pixels.data());
  write("labels", {images.labels.size()}, H5T_NATIVE_INT64, images.labels.data());
  if (H5Fclose(file) < 0 || !written) throw FileError(path.string() + ": cannot be written");
}

// The recipe with another source of images; its files, where it needs any, are written into `folder`.
DataConfig with_source(const RunConfig& config, const std::string& source, std::int64_t images,
                       const fs::path& folder) {
  DataConfig data = config.data;
  data.name = source;
  data.validation = 0;
  data.workers = 1;
  data.synthetic_train = images;
  data.synthetic_test = 1 + config.model.image_shape().classes;
  data.root.clear();
  if (source != "idx" && source != "hdf5") return data;
  DataConfig made = data;
  made.name = "synthetic";
  const Datasets sets = make_datasets(made, config.seed, config.model.image_shape());
  const auto write = source == "idx" ? write_idx : write_hdf5;
  write(folder, "train", Images(*sets.train));
  write(folder, "test", Images(*sets.test));
  data.root = folder.string();
  return data;
}

// The steps of an epoch, taken as fast as `workers` threads make them. Returns the resident bytes while these
// threads still are there, and whatever they hold.
double epoch(const std::shared_ptr<const Dataset>& train, LoaderConfig config, std::int64_t workers,
             std::int64_t number) {
  config.data.workers = workers;
  const std::int64_t steps = steps_per_epoch(*train, config.global_batch);
  Loader loader(train, config, number * steps, (number + 1) * steps);
  for (std::int64_t step = 0; step < steps; ++step) loader.next();
  return status_bytes("VmRSS");
}

void measure(BenchReport& report, const std::string& name, const RunConfig& run, const DataConfig& data,
             int rounds) {
  const auto train = make_datasets(data, run.seed, run.model.image_shape()).train;
  const LoaderConfig config{data, run.seed, run.train.global_batch, run.model.image_shape().classes};
  const auto images = static_cast<double>(steps_per_epoch(*train, config.global_batch) * config.global_batch);
  std::vector<double> ratios, rates, processor_rates;
  for (int round = 0; round <= rounds; ++round) {
    const std::clock_t processor = std::clock();
    const double seconds = 1e-3 * milliseconds([&] { epoch(train, config, 1, round); });
    const double used = static_cast<double>(std::clock() - processor) / CLOCKS_PER_SEC;
    if (round == 0) continue;  // first touch
    rates.push_back(images / seconds), processor_rates.push_back(images / used);
    ratios.push_back(images / seconds / kImagesPerSecond);
  }
  report.add({name,
              ratios,
              Bar::at_least,
              1.0,
              {{"images/s", median(rates)}, {"images/s_processor_time", median(processor_rates)}}});

  const double bytes = static_cast<double>(train->size() * train->channels * train->height * train->width);
  const double one = epoch(train, config, 1, 0), two = epoch(train, config, 2, 0);
  report.add({name + "/shared",
              {(two - one) / bytes},
              Bar::at_most,
              kSharedBar,
              {{"one_thread_MB", one / 1e6}, {"two_threads_MB", two / 1e6}, {"data_MB", bytes / 1e6}}});
}

std::vector<std::string> shipped_recipes() {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(EXFUSION_RECIPES)) {
    if (entry.path().extension() == ".yaml")
      names.push_back(fs::relative(entry.path(), EXFUSION_RECIPES).replace_extension().string());
  }
  std::ranges::sort(names);
  return names;
}

// All of `known`, or those of them that the option lists.
std::vector<std::string> chosen(const po::variables_map& given, const std::string& option,
                                const std::vector<std::string>& known) {
  if (!given.count(option)) return known;
  const auto names = split_list(option, given[option].as<std::string>());
  for (const std::string& name : names) {
    if (std::ranges::find(known, name) == known.end())
      throw UsageError(fmt::format("--{} {}: choose of {}", option, name, fmt::join(known, ", ")));
  }
  return names;
}

int run(int argc, char** argv) {
  ProgramOptions program{kUsage, po::options_description("Options"), ""};
  program.options.add_options()("recipes", po::value<std::string>()->value_name("LIST"),
                                "names of shipped recipes (default: all)")(
      "sources", po::value<std::string>()->value_name("LIST"), "data sets (default: all)")(
      "images", po::value<int>()->default_value(60'000)->value_name("N"), "of each data set that is made up");
  add_bench_options(program, 5);
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  const int images = given["images"].as<int>();
  if (images < 1 || images > 10'000'000) throw UsageError("--images must be 1 to 10000000");
  const auto recipes = chosen(given, "recipes", shipped_recipes());
  const auto sources = chosen(given, "sources", dataset_names());
  const BenchOptions options = read_bench_options(given);
  at::set_num_threads(1);  // of the rows: a loader has one thread
  BenchReport report(options);
  for (const std::string& name : recipes) {
    Recipe recipe = Recipe::load(std::string(EXFUSION_RECIPES) + "/" + name + ".yaml", {});
    const RunConfig config = parse_run(recipe);
    for (const std::string& source : sources) {
      const Folder folder;
      try {
        const DataConfig data = with_source(config, source, images, folder.path);
        measure(report, "loader/" + name + "/" + source, config, data, options.rounds);
      } catch (const DataError& error) {  // not installed, or of another shape than the recipe's model
        if (given.count("sources")) throw;
        fmt::print(stderr, "bench_loader: left out: {}\n", error.what());
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("bench_loader", [&] { return exfusion::run(argc, argv); });
}
