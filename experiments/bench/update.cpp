// Question: how near is the expert bank's update (dots and walk) to what memory allows? Bar: 0.90 of the time
// that a read-only walk over the dots' bytes and an in-place AdamW walk over the rest take in this process.
// Command: bench_update [--json FILE]
// 12 FFNs of ViT-S (384, 1536), learned weights, N = 1, 2, 4, 8; rounds interleaved, medians.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fusion/expert_bank.h"
#include "nn/ffn.h"

namespace {

using namespace exfusion;

constexpr std::int64_t kDim = 384, kHidden = 1536, kLayers = 12;
constexpr int kRounds = 15;

double milliseconds(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> x) {
  std::ranges::sort(x);
  return x[x.size() / 2];
}

std::string machine() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line) && !line.starts_with("model name")) {
  }
  return line.empty() ? "unknown" : line.substr(line.find(':') + 2);
}

// Reads every byte once; whole numbers, so that any compiler vectorises the sum.
void read_walk(const at::Tensor& bytes) {
  const auto* x = bytes.const_data_ptr<std::int32_t>();
  const std::int64_t n = bytes.numel();
  std::uint32_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<std::uint32_t>(x[i]);
  volatile std::uint32_t sink = sum;
  static_cast<void>(sink);
}

// In-place AdamW over n elements, 28 bytes each, by libtorch's fused operator.
struct AdamWWalk {
  explicit AdamWWalk(std::int64_t n)
      : w(at::full({n}, 0.1f)), m(at::zeros({n})), v(at::zeros({n})), g(at::full({n}, 0.01f)) {}
  void step() {
    at::_fused_adamw_({w}, {g}, {m}, {v}, {}, {count.add_(1)}, 1e-3, 0.9, 0.999, 0.05, 1e-8, false, false);
  }
  at::Tensor w, m, v, g, count = at::zeros({});
};

nlohmann::json row(const std::string& name, double yardstick, double ours, double gigabytes, double bar) {
  const double ratio = yardstick / ours;
  std::printf("%-22s %9.2f %9.2f %8.1f %7.3f   %.2f  %s\n", name.c_str(), ours, yardstick,
              gigabytes / ours * 1e3, ratio, bar, ratio >= bar ? "holds" : "fails");
  return {{"name", name}, {"ratio", ratio}, {"bar", bar}, {"holds", ratio >= bar}, {"samples", kRounds}};
}

nlohmann::json update_row(std::int64_t experts) {
  std::vector<ParameterSlot> slots;
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    const auto values = initial_ffn(kDim, kHidden, 1, layer, 0);
    for (const at::Tensor& value : values) slots.push_back({.name = "", .parameter = value});
  }
  FlatParameters flat(slots);
  flat.gradients().fill_(1e-3);
  FusionConfig config;
  config.experts = experts;
  config.init = "copy";  // quick to make; the arithmetic is the same
  std::vector<ExpertBank> banks;
  for (std::int64_t i = 0; i < kLayers; ++i) {
    banks.emplace_back(config, flat, static_cast<std::size_t>(4 * i), "mlp", i, 1);
  }

  const std::int64_t parameters = flat.values().numel(), walked = 6 * experts + 2, dotted = experts + 1;
  AdamWWalk walk(parameters * walked / 7);
  const at::Tensor read = at::ones({parameters * dotted}, at::kInt);
  std::vector<double> ours, yardstick;
  for (int round = 0; round <= kRounds; ++round) {
    const double one = milliseconds([&] {
      for (ExpertBank& bank : banks) bank.update(AdamWConfig(), 1e-3, 1e-3, round + 1, 1.0f);
    });
    const double other = milliseconds([&] { walk.step(); }) + milliseconds([&] { read_walk(read); });
    if (round == 0) continue;  // first touch
    ours.push_back(one);
    yardstick.push_back(other);
  }
  const double gigabytes = 4e-9 * static_cast<double>(parameters * (walked + dotted));
  return row("bank update, N = " + std::to_string(experts), median(yardstick), median(ours), gigabytes, 0.90);
}

}  // namespace

int main(int argc, char** argv) {
  const bool json = argc == 3 && std::string(argv[1]) == "--json";
  if (argc != 1 && !json) return std::fputs("usage: bench_update [--json FILE]\n", stderr), 2;
  std::printf("%-22s %9s %9s %8s %7s   bar\n", "", "ms", "yardstick", "GB/s", "ratio");
  nlohmann::json rows;
  for (const std::int64_t experts : {1, 2, 4, 8}) rows.push_back(update_row(experts));
  if (!json) return 0;
  std::ofstream file(argv[2]);
  file << nlohmann::json{{"machine", machine()}, {"threads", at::get_num_threads()}, {"rows", rows}}.dump(1)
       << '\n';
  return file.good() ? 0 : 1;
}
