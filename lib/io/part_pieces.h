// Tensors, or parts of them, in pieces of bounded size.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "io/tensor_part.h"

namespace exfusion {

constexpr std::int64_t kPieceBytes = 16 << 20;

std::vector<std::int64_t> whole_shape(const TensorPart& part);

// Elements of one piece of a tensor of that type.
std::int64_t piece_elements(at::ScalarType type);

// Calls `take(place, piece)` for all that the part holds: piece [n], on the CPU and contiguous, is elements
// [place, place + n) of the whole tensor seen as flat. Copies no more than one row of a tensor at a time.
void for_each_piece(const TensorPart& part,
                    const std::function<void(std::int64_t place, const at::Tensor& piece)>& take);

// The other way: piece [n] is elements [place, place + n) of the whole tensor, of which the part takes what
// it holds. The part's rows must be contiguous.
void copy_piece(const TensorPart& part, std::int64_t place, const at::Tensor& piece);

}  // namespace exfusion
