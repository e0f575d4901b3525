// Files whose tensors must be exactly the expected ones.
#pragma once
#include <string>

#include "io/safetensors.h"
#include "io/tensor_part.h"

namespace exfusion {

// Throws FormatError naming the tensor unless the file holds exactly these tensors (of which `parts` may be
// parts), each with its dtype and shape.
void expect_exactly(const SafetensorsFile& file, const TensorParts& parts);

// Copies the file's tensors into `targets`, after expect_exactly.
void read_exactly(const std::string& path, const NamedTensors& targets);

}  // namespace exfusion
