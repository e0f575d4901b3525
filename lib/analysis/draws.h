// Where the analysis takes its random numbers from: a function of the purpose, the repetition and the layer,
// with a fixed seed, so that the same trace gives the same answer.
#pragma once
#include "core/random.h"

namespace exfusion::analysis {

enum class Purpose : std::uint32_t {
  batches = 16,  // Draw::resampling's kinds below belong to lib/compare
  router_null = 17,
  load_noise = 18,
  token_types = 19,
  random_partition = 20,
  label_shuffle = 21,
  random_router = 22,
  phase_noise = 23,
  class_shuffle = 24,
  random_direction = 25,
  token_sample = 28,
  shuffled_tokens = 29,
  swapped_routes = 30,
  random_perturbation = 32,
  preference_swap = 33,
  scored_tokens = 34,
  turned_outputs = 35,
  random_route = 36,
  shuffled_rows = 37,
  shuffled_inputs = 38,
  common_tokens = 39,
};

inline CounterRandom draw(Purpose purpose, std::uint32_t repetition, std::uint32_t layer = 0) {
  return CounterRandom(0, Draw::resampling, static_cast<std::uint32_t>(purpose), repetition, layer);
}

}  // namespace exfusion::analysis
