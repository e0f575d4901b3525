// A routing trace: what a mixture of experts did on B batches of tokens, as sums per batch and expert. The
// file formats (HDF5 version 1, and a CSV of counts): docs/formats.md.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace exfusion::analysis {

enum class RouterScores { softmax, sigmoid };

// One layer. An empty vector is a field that is not in the trace. B batches, M experts, S sampled tokens of D
// hidden values.
struct TraceLayer {
  std::int64_t layer = 0;
  std::vector<double> tokens;            // [B], whole numbers; empty in a CSV of counts
  std::vector<double> count;             // [B, M]: tokens that selected the expert; whole numbers
  std::vector<double> sum_prob;          // [B, M], over all tokens: softmax, or normalised sigmoid scores
  std::vector<double> sum_logit;         // [B, M], over all tokens, without selection bias
  std::vector<double> sum_logit_sq;      // [B, M]
  std::vector<double> selection_bias;    // [M], added to the scores for the selection
  std::vector<double> sum_gate;          // [B, M], over routed tokens, as the following
  std::vector<double> sum_norm;          // [B, M]: l2 norm of the expert's output before the gate
  std::vector<double> sum_norm_sq;       // [B, M]
  std::vector<double> sum_gate_norm;     // [B, M]
  std::vector<double> sum_gate_norm_sq;  // [B, M]: of (gate * norm)^2
  std::vector<double> sum_rsd;           // [B, M]: of renormalised damages, as in scores.h
  std::vector<double> sum_taylor;    // [B, M]: of -gate <gradient of the loss by the layer's output, output>
  std::vector<std::int32_t> domain;  // [B]
  std::vector<std::int32_t> item_domain;  // [I]: of the items (images) whose tokens a batch mixes, instead of
                                          // a domain per batch
  std::vector<double> item_count;         // [I, M]: as count, per item
  std::vector<float> logits;              // [S, M], sample of tokens
  std::vector<std::int32_t> batch;        // [S]
  std::vector<std::int32_t> item;         // [S], with item_domain
  std::vector<float> hidden;              // [S, D]: the router's input
  std::size_t batches() const { return tokens.empty() ? domain.size() : tokens.size(); }
  std::size_t sampled() const { return batch.size(); }
  std::size_t hidden_size() const { return batch.empty() ? 0 : hidden.size() / batch.size(); }
};

struct Trace {
  std::size_t experts = 0;  // M >= 2
  std::size_t top_k = 0;    // K, 1 to M; 0 in a CSV of counts, which does not know it
  RouterScores scores = RouterScores::softmax;
  std::optional<double> aux_loss_coef;
  std::vector<std::string> domains;  // names, or empty
  std::vector<TraceLayer> layers;    // at least one, ascending
};

// Writes the HDF5 format, whole or not at all. Throws FormatError where check_trace does; FileError.
void write_trace(const Trace& trace, const std::filesystem::path& file);

// Reads and checks either format, chosen by the first bytes of the file. Throws FormatError with the file,
// the field and what is wrong in it; FileError.
Trace read_trace(const std::filesystem::path& file);

// The two formats; internal to read_trace.
Trace read_trace_hdf5(const std::filesystem::path& file);
Trace read_trace_csv(const std::filesystem::path& file);
// What no field shows alone: sums, ranges, sizes that agree. `file` is for messages.
void check_trace(const Trace& trace, const std::string& file);
void check_domain_name(const std::string& name, const std::string& where);
std::string printable(std::string_view text);  // for messages: control characters as ?, at most 64 characters

// Sums of the rows of a [rows, columns] array.
std::vector<double> column_sums(const std::vector<double>& table, std::size_t columns);

}  // namespace exfusion::analysis
