// A tensor of a file of which this process may hold a part only.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace exfusion {

struct TensorPart {
  std::string name;
  at::Tensor values;                // a view: the whole tensor, or columns of it, [rows, columns]
  std::vector<std::int64_t> shape;  // of the whole tensor; empty: values is the whole
  // Of a part: the whole tensor seen as [rows, all columns] has these values from `first_column` on.
  std::int64_t first_column = 0;
};
using TensorParts = std::vector<TensorPart>;

}  // namespace exfusion
