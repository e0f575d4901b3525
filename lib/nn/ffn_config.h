// The recipe's `model.ffn` section: what stands at the feed-forward position of which blocks.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace exfusion {

class FeedForward;
class Section;

struct FfnConfig {
  std::string name = "dense";
  std::int64_t experts = 4;                   // N, per FFN
  std::vector<std::string> layers = {"all"};  // nn/layer_selection.h; the other blocks are dense

  // topk
  std::int64_t top_k = 2;        // experts per token
  bool renormalize = true;       // top_k >= 2: a token's gates sum to 1; false: the plain probabilities
  double capacity_factor = 0.0;  // of training passes; 0: no token is dropped
  double balance_loss = 0.01;    // coefficients; 0: off
  double z_loss = 0.0;
  double bias_balance = 0.0;  // step of the selection biases; 0: off

  // ewa
  double share_rate = 0.3;  // at the end of training; it grows linearly from 0

  // For a model of `blocks` blocks.
  static FfnConfig parse(Section section, std::int64_t blocks);
  std::vector<bool> chosen_blocks(std::int64_t blocks) const;  // [blocks]: whether this FFN stands there
  // Numbers in a model's file for one such FFN: its parameters, and with bias_balance its selection biases.
  double stored_numbers(std::int64_t dim, std::int64_t hidden) const;
};

std::vector<std::string> ffn_names();  // for --list

// FFN number `ffn` of a model, without initial values.
std::shared_ptr<FeedForward> make_ffn(const FfnConfig& config, std::int64_t dim, std::int64_t hidden,
                                      std::int64_t ffn);

}  // namespace exfusion
