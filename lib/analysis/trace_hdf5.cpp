// The HDF5 form of a trace. Data sets must be contiguous, as h5py writes them by default: HDF5 1.10 reads out
// of bounds when a damaged compressed chunk inflates to less than the chunk's size.
#include <fmt/format.h>
#include <hdf5.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "analysis/trace.h"
#include "core/error.h"
#include "core/log.h"
#include "io/hdf5_handle.h"

namespace exfusion::analysis {
namespace {

constexpr std::int64_t kMostExperts = 65536;
constexpr hsize_t kMostDomains = 65536, kMostTextBytes = 65536;
constexpr std::uint64_t kMostLayers = 1000;

using Handle = Hdf5Handle;

[[noreturn]] void fail(const std::string& where, const std::string& what) {
  throw FormatError(where + ": " + what);
}

// ---- attributes ----

std::int64_t integer_attribute(hid_t file, const std::string& path, const char* name, std::int64_t low,
                               std::int64_t high) {
  const std::string where = fmt::format("{}: attribute {}", path, name);
  if (H5Aexists(file, name) <= 0) fail(where, "missing");
  const Handle attribute(H5Aopen(file, name, H5P_DEFAULT), H5Aclose);
  const Handle type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
  std::int64_t value = 0;
  if (H5Tget_class(type) != H5T_INTEGER || H5Sget_simple_extent_npoints(space) != 1 ||
      H5Aread(attribute, H5T_NATIVE_INT64, &value) < 0)
    fail(where, "must be one whole number");
  if (value < low || value > high) fail(where, fmt::format("must be {} to {}, is {}", low, high, value));
  return value;
}

std::optional<double> number_attribute(hid_t file, const std::string& path, const char* name) {
  if (H5Aexists(file, name) <= 0) return std::nullopt;
  const std::string where = fmt::format("{}: attribute {}", path, name);
  const Handle attribute(H5Aopen(file, name, H5P_DEFAULT), H5Aclose);
  const Handle type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
  const H5T_class_t kind = H5Tget_class(type);
  double value = 0.0;
  if ((kind != H5T_FLOAT && kind != H5T_INTEGER) || H5Sget_simple_extent_npoints(space) != 1 ||
      H5Aread(attribute, H5T_NATIVE_DOUBLE, &value) < 0)
    fail(where, "must be one number");
  if (!(value >= 0.0 && value < 1e300)) fail(where, fmt::format("must be 0 or more, is {}", value));
  return value;
}

// One string or an array of strings, of fixed or variable length.
std::vector<std::string> text_attribute(hid_t file, const std::string& path, const char* name) {
  if (H5Aexists(file, name) <= 0) return {};
  const std::string where = fmt::format("{}: attribute {}", path, name);
  const Handle attribute(H5Aopen(file, name, H5P_DEFAULT), H5Aclose);
  const Handle type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
  const hssize_t points = H5Sget_simple_extent_npoints(space);
  if (H5Tget_class(type) != H5T_STRING || points < 1) fail(where, "must be text");
  if (static_cast<hsize_t>(points) > kMostDomains) fail(where, fmt::format("has {} entries", points));
  const auto count = static_cast<std::size_t>(points);
  const std::size_t size = H5Tget_size(type);
  const Handle memory(H5Tcopy(type), H5Tclose);
  std::vector<std::string> texts;
  if (H5Tis_variable_str(type) > 0) {
    std::vector<char*> pointers(count, nullptr);
    if (H5Aread(attribute, memory, pointers.data()) < 0) fail(where, "damaged");
    for (const char* text : pointers) texts.emplace_back(text ? text : "");
    H5Dvlen_reclaim(memory, space, H5P_DEFAULT, pointers.data());
  } else {
    if (size > kMostTextBytes) fail(where, fmt::format("text of {} bytes", size));
    std::string all(count * size, '\0');
    if (H5Aread(attribute, memory, all.data()) < 0) fail(where, "damaged");
    for (std::size_t i = 0; i < count; ++i) texts.emplace_back(std::string(all, i * size, size).c_str());
  }
  for (const std::string& text : texts) {
    if (text.size() > kMostTextBytes) fail(where, fmt::format("text of {} bytes", text.size()));
  }
  return texts;
}

// ---- data sets ----

struct LayerPlace {
  hid_t group;
  std::string where;        // file: group
  std::uint64_t file_size;  // bytes
};

constexpr hsize_t kAnySize = 0;

// Sizes of a data set after checking its kind (whole numbers or floating point), its sizes (kAnySize: 1 or
// more) and that the file holds its bytes.
std::vector<hsize_t> checked_sizes(const LayerPlace& place, hid_t dataset, const std::string& where,
                                   bool whole, const std::vector<hsize_t>& expected) {
  const Handle type(H5Dget_type(dataset), H5Tclose), space(H5Dget_space(dataset), H5Sclose);
  const Handle creation(H5Dget_create_plist(dataset), H5Pclose);
  if (type < 0 || space < 0 || creation < 0) fail(where, "damaged, or no data set");
  if (H5Tget_class(type) != (whole ? H5T_INTEGER : H5T_FLOAT) || H5Tget_size(type) > 8)
    fail(where, whole ? "must hold whole numbers of at most 64 bits" : "must hold float32 or float64");
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank != static_cast<int>(expected.size()))
    fail(where, fmt::format("has {} dimensions, expected {}", rank, expected.size()));
  std::vector<hsize_t> sizes(expected.size());
  if (H5Sget_simple_extent_dims(space, sizes.data(), nullptr) != rank) fail(where, "damaged");
  std::uint64_t values = 1;
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) fail(where, "is empty");
    if (expected[d] != kAnySize && sizes[d] != expected[d])
      fail(where, fmt::format("has size {} in dimension {}, expected {}", sizes[d], d, expected[d]));
    if (sizes[d] > place.file_size) fail(where, "truncated: larger than the file");
    values *= sizes[d];
    if (values > place.file_size) fail(where, "truncated: larger than the file");
  }
  const H5D_layout_t layout = H5Pget_layout(creation);
  if ((layout != H5D_CONTIGUOUS && layout != H5D_COMPACT) || H5Pget_external_count(creation) != 0)
    fail(where, "must be stored contiguously, as h5py does by default: no chunks, no compression");
  const std::uint64_t stored = std::min<std::uint64_t>(H5Dget_storage_size(dataset), place.file_size);
  if (stored < values * H5Tget_size(type)) fail(where, "truncated");
  return sizes;
}

template <class T>
constexpr bool kStoredWhole = std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::int64_t>;

template <class T>
hid_t memory_type() {
  if constexpr (std::is_same_v<T, std::int32_t>) return H5T_NATIVE_INT32;
  if constexpr (std::is_same_v<T, std::int64_t>) return H5T_NATIVE_INT64;
  if constexpr (std::is_same_v<T, float>) return H5T_NATIVE_FLOAT;
  return H5T_NATIVE_DOUBLE;
}

// The values of a field, or none if it is not there.
template <class T>
std::vector<T> read_field(const LayerPlace& place, const char* name, const std::vector<hsize_t>& expected) {
  const std::string where = place.where + "/" + name;
  if (H5Lexists(place.group, name, H5P_DEFAULT) <= 0) return {};
  const Handle dataset(H5Dopen2(place.group, name, H5P_DEFAULT), H5Dclose);
  if (dataset < 0) fail(where, "damaged, or no data set");
  std::uint64_t count = 1;
  for (const hsize_t size : checked_sizes(place, dataset, where, kStoredWhole<T>, expected)) count *= size;
  std::vector<T> values(count);
  if (H5Dread(dataset, memory_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
    fail(where, "damaged: cannot be read");
  return values;
}

std::vector<double> read_whole(const LayerPlace& place, const char* name,
                               const std::vector<hsize_t>& expected) {
  const std::vector<std::int64_t> whole = read_field<std::int64_t>(place, name, expected);
  if (whole.empty()) fail(place.where + "/" + name, "missing");
  return {whole.begin(), whole.end()};
}

void read_items(const LayerPlace& place, hsize_t experts, TraceLayer& layer) {
  layer.item_domain = read_field<std::int32_t>(place, "item_domain", {kAnySize});
  if (layer.item_domain.empty()) return;
  layer.item_count = read_whole(place, "item_count", {layer.item_domain.size(), experts});
  if (!layer.batch.empty()) layer.item = read_field<std::int32_t>(place, "item", {layer.sampled()});
  if (layer.item.empty() && !layer.batch.empty())
    fail(place.where, "with `item_domain` a sample of tokens has `item`, too");
}

TraceLayer read_layer(const LayerPlace& place, std::int64_t number, hsize_t experts) {
  TraceLayer layer;
  layer.layer = number;
  layer.tokens = read_whole(place, "tokens", {kAnySize});
  const hsize_t batches = layer.tokens.size();
  layer.count = read_whole(place, "count", {batches, experts});
  const std::pair<const char*, std::vector<double> TraceLayer::*> sums[] = {
      {"sum_prob", &TraceLayer::sum_prob},
      {"sum_logit", &TraceLayer::sum_logit},
      {"sum_logit_sq", &TraceLayer::sum_logit_sq},
      {"sum_gate", &TraceLayer::sum_gate},
      {"sum_norm", &TraceLayer::sum_norm},
      {"sum_norm_sq", &TraceLayer::sum_norm_sq},
      {"sum_gate_norm", &TraceLayer::sum_gate_norm},
      {"sum_gate_norm_sq", &TraceLayer::sum_gate_norm_sq},
      {"sum_rsd", &TraceLayer::sum_rsd},
      {"sum_taylor", &TraceLayer::sum_taylor}};
  for (const auto& [name, member] : sums) layer.*member = read_field<double>(place, name, {batches, experts});
  layer.selection_bias = read_field<double>(place, "selection_bias", {experts});
  layer.domain = read_field<std::int32_t>(place, "domain", {batches});
  layer.batch = read_field<std::int32_t>(place, "batch", {kAnySize});
  const hsize_t sampled = layer.batch.size();
  layer.logits = read_field<float>(place, "logits", {sampled, experts});
  layer.hidden = read_field<float>(place, "hidden", {sampled, kAnySize});
  if (layer.logits.empty() != layer.batch.empty())
    fail(place.where, "a sample of tokens has both `logits` and `batch`");
  if (!layer.hidden.empty() && layer.logits.empty())
    fail(place.where, "`hidden` needs the sample's `logits` and `batch`");
  read_items(place, experts, layer);
  return layer;
}

// Numbers of the groups layer_000, ..., in their order; other names are passed over with a warning.
herr_t note_layer(hid_t /*file*/, const char* name, const H5L_info_t* /*info*/, void* numbers) {
  const std::string text = name;
  if (text.starts_with("layer_") && text.size() >= 9 && text.size() <= 13 &&
      text.find_first_not_of("0123456789", 6) == text.npos) {
    static_cast<std::vector<std::pair<std::int64_t, std::string>>*>(numbers)->emplace_back(
        std::stoll(text.substr(6)), text);
  } else {
    log_warning("trace: `{}` is not part of the format: passed over", printable(text));
  }
  return 0;
}

Trace read_header(hid_t file, const std::string& path) {
  const std::vector<std::string> format = text_attribute(file, path, "format");
  if (format != std::vector<std::string>{"exfusion-trace"})
    fail(path, fmt::format("no routing trace: attribute format must be exfusion-trace, {}",
                           format.empty() ? "is missing (of a run, give its folder)"
                                          : "is '" + printable(format[0]) + "'"));
  integer_attribute(file, path, "version", 1, 1);
  Trace trace;
  const std::int64_t experts = integer_attribute(file, path, "num_experts", 2, kMostExperts);
  trace.experts = static_cast<std::size_t>(experts);
  trace.top_k = static_cast<std::size_t>(integer_attribute(file, path, "top_k", 1, experts));
  const std::vector<std::string> scores = text_attribute(file, path, "scores");
  if (scores.size() > 1 || (scores.size() == 1 && scores[0] != "softmax" && scores[0] != "sigmoid"))
    fail(path, "attribute scores must be softmax or sigmoid");
  if (scores.size() == 1 && scores[0] == "sigmoid") trace.scores = RouterScores::sigmoid;
  trace.aux_loss_coef = number_attribute(file, path, "aux_loss_coef");
  trace.domains = text_attribute(file, path, "domains");
  return trace;
}

Trace read_whole_file(const std::filesystem::path& file) {
  const std::string path = file.string();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // the FormatError says what matters
  const Handle opened(H5Fopen(file.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  if (opened < 0) fail(path, "no HDF5 file, or a damaged one");
  Trace trace = read_header(opened, path);
  std::vector<std::pair<std::int64_t, std::string>> layers;
  if (H5Literate(opened, H5_INDEX_NAME, H5_ITER_INC, nullptr, note_layer, &layers) < 0)
    fail(path, "damaged: groups cannot be listed");
  if (layers.size() > kMostLayers) fail(path, fmt::format("{} layers", layers.size()));
  std::ranges::sort(layers);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto& [number, name] = layers[i];
    if (i > 0 && layers[i - 1].first == number) fail(path, fmt::format("layer {} is there twice", number));
    const Handle group(H5Gopen2(opened, name.c_str(), H5P_DEFAULT), H5Gclose);
    if (group < 0) fail(path + ": " + name, "must be a group");
    trace.layers.push_back(
        read_layer({group, path + ": " + name, std::filesystem::file_size(file)}, number, trace.experts));
  }
  check_trace(trace, path);
  return trace;
}

// Damaged object headers make HDF5 1.10 itself read out of bounds. A child reads the file first: when it
// dies of that, this process does not.
void read_in_child(const std::filesystem::path& file) {
  const pid_t child = fork();
  if (child < 0) throw FileError("cannot start a process that tries " + file.string());
  if (child == 0) {
    close(STDERR_FILENO);  // what there is to say, the parent says
    try {
      read_whole_file(file);
    } catch (...) {
    }
    _exit(0);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail(file.string(), "damaged: HDF5 cannot read it");
}

}  // namespace

Trace read_trace_hdf5(const std::filesystem::path& file) {
  read_in_child(file);
  return read_whole_file(file);
}

}  // namespace exfusion::analysis
