// Watching a model's FFNs at work, from outside.
#pragma once
#include <memory>
#include <vector>

#include "nn/block.h"

namespace exfusion {

// Puts a model in evaluation mode and observers in its blocks, and takes both back at its end.
class ObservedBlocks {
 public:
  explicit ObservedBlocks(torch::nn::Module& model);
  ~ObservedBlocks();
  ObservedBlocks(const ObservedBlocks&) = delete;
  ObservedBlocks& operator=(const ObservedBlocks&) = delete;
  const std::vector<std::shared_ptr<Block>>& blocks() const { return blocks_; }

 private:
  torch::nn::Module& model_;
  bool training_;
  std::vector<std::shared_ptr<Block>> blocks_;
};

}  // namespace exfusion
