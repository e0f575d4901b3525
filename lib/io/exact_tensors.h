// Files whose tensors must be exactly the expected ones.
#pragma once
#include <string>

#include "io/safetensors.h"

namespace exfusion {

// Copies the file's tensors into `targets`: every one of them must be there with its shape, and nothing else.
// Throws FormatError naming the tensor.
void read_exactly(const std::string& path, const NamedTensors& targets);

}  // namespace exfusion
