// Question: how near is the expert bank's update (dots and walk) to what memory allows, and what does it add
// to the dense update of the same FFNs? Command: ./dev bench update
//
// Yardsticks of the same process and round: a read-only walk over the bytes that the dots read by themselves
// and libtorch's fused AdamW in place over the others, both in large pages as our own memory. The norm's own
// read of G is in no row: a dense step has it too.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "bench.h"
#include "core/error.h"
#include "core/instruction_sets.h"
#include "fusion/expert_bank.h"
#include "nn/ffn.h"
#include "optim/large_pages.h"

namespace exfusion {
namespace {

namespace po = boost::program_options;

constexpr double kBudget = 6e9;  // bytes of one case: larger ones get fewer layers, and their row says so
constexpr double kPassBar = 0.90, kAddedBar = 1.2;
constexpr double kWalkBytes = 28.0;  // AdamW in place, per parameter: w, m, v read and written, G read

constexpr const char* kUsage =
    "bench_update [--sizes LIST] [--experts LIST] [--weights LIST]\n\n"
    "The update pass of the fused FFNs beside what memory allows. Two rows a case: the pass against a walk\n"
    "over the same bytes, and what it adds to the dense update against what the pass's bytes cost.\n";

// What the updates, ours and the dense one, write besides the fp32 weights.
struct Output {
  const char* name;
  double bytes;  // per FFN parameter
  void (*prepare)(FlatParameters& flat);
};
constexpr std::array kOutputs = {Output{"fp32", 0.0, [](FlatParameters&) {}},
                                 Output{"bf16", 2.0, [](FlatParameters& flat) { flat.keep_bf16(); }}};

struct Size {
  std::string name;
  std::int64_t dim, hidden, layers;
};
const std::array kSizes = {Size{"vit_s", 384, 1536, 12}, Size{"vit_b", 768, 3072, 12},
                           Size{"odd", 381, 1523, 12}};

// A name of the table, or DIMxHIDDENxLAYERS.
Size parse_size(const std::string& text) {
  for (const Size& size : kSizes) {
    if (size.name == text) return size;
  }
  const auto first = text.find('x'), second = text.rfind('x');
  if (first == second) throw UsageError("--sizes " + text + ": give vit_s, vit_b, odd or DIMxHIDDENxLAYERS");
  const auto number = [](const std::string& digits) { return parse_number("sizes", digits, 1, 100'000); };
  return {text, number(text.substr(0, first)), number(text.substr(first + 1, second - first - 1)),
          number(text.substr(second + 1))};
}

// The sum of n whole numbers in as many lanes as keep the processor waiting for memory alone.
EXFUSION_INSTRUCTION_SETS
std::uint32_t lane_sums(std::int64_t n, const std::uint32_t* x) {
  constexpr std::int64_t kLanes = 128;
  std::uint32_t lanes[kLanes] = {}, sum = 0;
  for (std::int64_t i = 0; i + kLanes <= n; i += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j];
  }
  for (const std::uint32_t lane : lanes) sum += lane;
  return sum;
}

// Reads every number once.
void read_walk(const at::Tensor& numbers) {
  constexpr std::int64_t kChunk = 1 << 16;
  const auto* x = reinterpret_cast<const std::uint32_t*>(numbers.const_data_ptr<float>());
  const std::int64_t n = numbers.numel();
  std::uint32_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
  for (std::int64_t i = 0; i < n; i += kChunk) sum += lane_sums(std::min(kChunk, n - i), x + i);
  volatile std::uint32_t sink = sum;
  static_cast<void>(sink);
}

// In-place AdamW over n elements, 28 bytes each, by libtorch's fused operator.
struct AdamWWalk {
  explicit AdamWWalk(std::int64_t n)
      : w(zeros_in_large_pages({n}).fill_(0.1)),
        m(zeros_in_large_pages({n})),
        v(zeros_in_large_pages({n})),
        g(zeros_in_large_pages({n}).fill_(0.01)) {}
  void step() {
    at::_fused_adamw_({w}, {g}, {m}, {v}, {}, {count.add_(1)}, 1e-3, 0.9, 0.999, 0.05, 1e-8, false, false);
  }
  at::Tensor w, m, v, g, count = at::zeros({});
};

// The FFNs of a model in one flat buffer, with their experts, and the dense optimizer of the same parameters.
struct Case {
  Case(const Size& size, const std::string& weights, std::int64_t experts, const Output& output)
      : flat(slots(size)), dense(flat, 0, flat.slots().size()) {
    FusionConfig config;
    config.experts = experts;
    config.weights = weights;
    config.init = "copy";  // quick to make; the arithmetic is the same
    flat.gradients().fill_(1e-3);
    output.prepare(flat);
    for (std::int64_t i = 0; i < size.layers; ++i)
      banks.emplace_back(config, flat, static_cast<std::size_t>(4 * i), "mlp", i, 1);
  }
  static std::vector<ParameterSlot> slots(const Size& size) {
    std::vector<ParameterSlot> all;
    for (std::int64_t layer = 0; layer < size.layers; ++layer) {
      for (const at::Tensor& value : initial_ffn(size.dim, size.hidden, 1, layer, 0))
        all.push_back({.name = "", .parameter = value, .decay = value.dim() > 1});
    }
    return all;
  }
  FlatParameters flat;
  DenseAdamW dense;
  std::vector<ExpertBank> banks;
};

// Bytes per FFN parameter. Learned weights need the dots <G, W_k> before the walk; for static ones, whose
// next a is known, the walk takes them along.
struct Bytes {
  Bytes(const std::string& weights, std::int64_t experts, const Output& output)
      : walked(4.0 * static_cast<double>(6 * experts + 2) + output.bytes),
        read(weights == "learned" ? 4.0 * static_cast<double>(experts + 1) : 0.0),
        dense(kWalkBytes + output.bytes) {}
  double walked, read, dense;
};

// As many layers as the budget has room for: parameters and gradients, experts and moments, and the
// yardsticks.
Size fitting(Size size, std::int64_t experts, const Bytes& bytes) {
  const double parameters = static_cast<double>(2 * size.dim * size.hidden + size.dim + size.hidden);
  const double layer = parameters * (16.0 + 12.0 * static_cast<double>(experts) +
                                     bytes.walked / kWalkBytes * 16.0 + bytes.read);
  size.layers = std::clamp<std::int64_t>(static_cast<std::int64_t>(kBudget / layer), 1, size.layers);
  return size;
}

void measure(BenchReport& report, const Size& asked, const std::string& weights, std::int64_t experts,
             const Output& output, int rounds) {
  const Bytes bytes(weights, experts, output);
  const Size size = fitting(asked, experts, bytes);
  Case fused(size, weights, experts, output);
  const auto parameters = static_cast<double>(fused.flat.values().numel());
  AdamWWalk walk(static_cast<std::int64_t>(parameters * bytes.walked / kWalkBytes));
  const at::Tensor read = zeros_in_large_pages({static_cast<std::int64_t>(parameters * bytes.read / 4.0)});
  std::vector<double> pass, added, strict, update_ms, dense_ms, yardstick_ms, added_ms, bytes_ms;
  for (int round = 0; round <= rounds; ++round) {
    const double update = milliseconds([&] {
      for (ExpertBank& bank : fused.banks) bank.update(AdamWConfig(), 1e-3, 1e-3, round + 1, 1.0f);
    });
    const double walked = milliseconds([&] { walk.step(); });
    const double dense = milliseconds([&] { fused.dense.step(AdamWConfig(), 1e-3, round + 1, 1.0f); });
    const double yardstick = walked + milliseconds([&] { read_walk(read); });
    if (round == 0) continue;  // first touch
    const double all = bytes.walked + bytes.read, cost = walked * all / bytes.walked;
    pass.push_back(yardstick / update), added.push_back((update - dense) / cost);
    strict.push_back((update - dense) / (cost * (all - bytes.dense) / all));
    update_ms.push_back(update), dense_ms.push_back(dense), yardstick_ms.push_back(yardstick);
    added_ms.push_back(update - dense), bytes_ms.push_back(cost);
  }
  const std::string name =
      fmt::format("update/{}/{}n{}", asked.name, weights == "learned" ? "" : weights + "_", experts);
  const double gigabytes = 1e-9 * parameters * (bytes.walked + bytes.read), layers = size.layers;
  report.add({name + "/" + output.name,
              pass,
              Bar::at_least,
              kPassBar,
              {{"ms", median(update_ms)},
               {"yardstick_ms", median(yardstick_ms)},
               {"GB/s", gigabytes / median(update_ms) * 1e3},
               {"layers", layers}}});
  report.add({name + "/added/" + output.name,
              added,
              Bar::at_most,
              kAddedBar,
              {{"ms", median(added_ms)},
               {"bytes_ms", median(bytes_ms)},
               {"over_added_bytes", median(strict)},
               {"dense_ms", median(dense_ms)},
               {"layers", layers}}});
}

int run(int argc, char** argv) {
  ProgramOptions program{kUsage, po::options_description("Options"), ""};
  program.options.add_options()(
      "sizes", po::value<std::string>()->default_value("vit_s,vit_b,odd")->value_name("LIST"),
      "vit_s, vit_b, odd or DIMxHIDDENxLAYERS")(
      "experts", po::value<std::string>()->default_value("1,2,4,8,16")->value_name("LIST"),
      "numbers of experts")("weights",
                            po::value<std::string>()->default_value("learned,static")->value_name("LIST"),
                            "learned (dots before the walk), static (dots within it)");
  add_threads_option(program);
  add_bench_options(program, 21);
  const po::variables_map given = parse_options(program, argc, argv);
  if (answered(program, given)) return 0;
  std::vector<Size> sizes;
  for (const std::string& text : split_list("sizes", given["sizes"].as<std::string>()))
    sizes.push_back(parse_size(text));
  std::vector<std::int64_t> experts;
  for (const std::string& text : split_list("experts", given["experts"].as<std::string>()))
    experts.push_back(parse_number("experts", text, 1, kMaxExperts));
  const auto weights = split_list("weights", given["weights"].as<std::string>());
  for (const std::string& name : weights) {
    if (name != "learned" && name != "static")
      throw UsageError("--weights " + name + ": choose learned or static");
  }
  const BenchOptions options = read_bench_options(given);
  BenchReport report(options);
  for (const Size& size : sizes) {
    for (const std::string& mode : weights) {
      for (const std::int64_t n : experts) {
        for (const Output& output : kOutputs) measure(report, size, mode, n, output, options.rounds);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  return exfusion::run_program("bench_update", [&] { return exfusion::run(argc, argv); });
}
