// Writes and reads files on behalf of tests/python/test_io.py, which opens them with h5py, safetensors and
// tensorboard:
//   io_probe write PATH TEXT         a file
//   io_probe commit FOLDER TEXT      a folder with a file inner/file
//   io_probe safetensors OUT         one tensor of each dtype and the odd shapes
//   io_probe rewrite IN OUT          every tensor of IN and its metadata
//   io_probe metrics PATH KEEP       appends a row for each step read from stdin, and prints the step when it
//   is there io_probe events FOLDER RESUMED   a scalar for each "tag step value" read from stdin, likewise
#include <ATen/ATen.h>

#include <cstdlib>
#include <fstream>
#include <iostream>

#include "core/error.h"
#include "io/files.h"
#include "io/metrics_file.h"
#include "io/safetensors.h"
#include "io/tensorboard.h"

namespace {

using namespace exfusion;

void commit_folder(const std::string& path, const std::string& text) {
  PendingFolder folder(path);
  std::filesystem::create_directory(folder.path() / "inner");
  std::ofstream(folder.path() / "inner" / "file") << text;
  folder.commit();
}

void write_example(const std::string& path) {
  const at::Tensor values = at::arange(-3, 9).reshape({3, 4});
  NamedTensors tensors = {{"scalar", at::scalar_tensor(2.5)},
                          {"empty", at::empty({0, 3})},
                          {"transposed", values.to(at::kFloat).t()},
                          {"flag", values.gt(0)},
                          {"name \"\\/\t\xe2\x82\xac", at::ones({1})}};
  for (const at::ScalarType type :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar}) {
    tensors.emplace_back(c10::toString(type), values.to(type));
  }
  tensors.emplace_back("Byte", values.abs().to(at::kByte));
  write_safetensors(path, tensors, {{"format", "pt"}, {"arch", "vit"}});
}

void rewrite(const std::string& from, const std::string& to) {
  const SafetensorsFile file(from);
  NamedTensors tensors;
  for (const auto& [name, info] : file.tensors()) tensors.emplace_back(name, file.read(name));
  write_safetensors(to, tensors, file.metadata());
}

void write_metrics(const std::string& path, std::int64_t keep_through_step) {
  MetricsFile file(
      path, {{"train", {{"loss", false, {}}, {"samples", true, {}}}}, {"fusion", {{"a", false, {2, 3}}}}},
      keep_through_step);
  std::cout << "open" << std::endl;
  for (std::int64_t step = 0; std::cin >> step;) {
    const double s = static_cast<double>(step);
    file.append("train", step, {{"loss", {1.0 / s}}, {"samples", {64 * s}}});
    file.append("fusion", step, {{"a", {s, s + 1, s + 2, s + 3, s + 4, s + 5}}});
    std::cout << step << std::endl;
  }
}

void write_events(const std::string& folder, std::int64_t resumed_at) {
  EventFile file(folder, resumed_at);
  std::string tag, value;
  for (std::int64_t step = 0; std::cin >> tag >> step >> value;) {
    file.scalar(tag, step, std::strtod(value.c_str(), nullptr));
    file.flush();
    std::cout << step << std::endl;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const std::string command = arguments.empty() ? "" : arguments[0];
  try {
    if (command == "write" && arguments.size() == 3) {
      write_file(arguments[1], arguments[2]);
    } else if (command == "commit" && arguments.size() == 3) {
      commit_folder(arguments[1], arguments[2]);
    } else if (command == "safetensors" && arguments.size() == 2) {
      write_example(arguments[1]);
    } else if (command == "rewrite" && arguments.size() == 3) {
      rewrite(arguments[1], arguments[2]);
    } else if (command == "metrics" && arguments.size() == 3) {
      write_metrics(arguments[1], std::stoll(arguments[2]));
    } else if (command == "events" && arguments.size() == 3) {
      write_events(arguments[1], std::stoll(arguments[2]));
    } else {
      std::cerr << "see the head of io_probe.cpp\n";
      return 2;
    }
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return error.exit_code;
  }
  return 0;
}
