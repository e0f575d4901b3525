#include "io/part_pieces.h"

#include <ATen/ATen.h>
#include <c10/core/ScalarType.h>
#include <c10/util/accumulate.h>

#include <algorithm>

namespace exfusion {
namespace {

// Row r of `values`, seen as flat, is elements [first + r * distance, …) of the whole tensor.
struct Rows {
  at::Tensor values;  // [rows, …]
  std::int64_t first = 0, distance = 0;
};

Rows rows_of(const TensorPart& part) {
  const at::Tensor values = part.values.detach();
  if (!part.shape.empty())
    return {values, part.first_column, c10::multiply_integers(part.shape) / values.size(0)};
  if (values.is_contiguous()) return {values.view({1, values.numel()}), 0, values.numel()};
  return {values, 0, values.numel() / values.size(0)};
}

}  // namespace

std::vector<std::int64_t> whole_shape(const TensorPart& part) {
  return part.shape.empty() ? part.values.sizes().vec() : part.shape;
}

std::int64_t piece_elements(at::ScalarType type) {
  return kPieceBytes / static_cast<std::int64_t>(c10::elementSize(type));
}

void for_each_piece(const TensorPart& part,
                    const std::function<void(std::int64_t place, const at::Tensor& piece)>& take) {
  const Rows rows = rows_of(part);
  const std::int64_t most = piece_elements(part.values.scalar_type());
  for (std::int64_t r = 0; r < rows.values.size(0); ++r) {
    const at::Tensor row = rows.values.select(0, r).reshape(-1);
    for (std::int64_t begin = 0; begin < row.numel(); begin += most) {
      const at::Tensor piece = row.narrow(0, begin, std::min(most, row.numel() - begin));
      take(rows.first + r * rows.distance + begin, piece.to(at::kCPU).contiguous());
    }
  }
}

void copy_piece(const TensorPart& part, std::int64_t place, const at::Tensor& piece) {
  const Rows rows = rows_of(part);
  for (std::int64_t r = 0; r < rows.values.size(0); ++r) {
    const at::Tensor row = rows.values.select(0, r).view(-1);
    const std::int64_t origin = rows.first + r * rows.distance;
    const std::int64_t begin = std::max(place, origin),
                       end = std::min(place + piece.numel(), origin + row.numel());
    if (begin < end)
      row.narrow(0, begin - origin, end - begin).copy_(piece.narrow(0, begin - place, end - begin));
  }
}

}  // namespace exfusion
