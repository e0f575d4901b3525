#include "observe/observed_blocks.h"

namespace exfusion {

ObservedBlocks::ObservedBlocks(torch::nn::Module& model)
    : model_(model), training_(model.is_training()), blocks_(find_blocks(model)) {
  model_.eval();
}

ObservedBlocks::~ObservedBlocks() {
  for (const auto& block : blocks_) block->observe_ffn(nullptr);
  model_.train(training_);
}

}  // namespace exfusion
