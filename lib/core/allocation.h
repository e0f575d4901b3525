// How the C library's allocator treats memory that is freed.
#pragma once

namespace exfusion {

// Freed memory stays with the process, for programs that allocate the same activations in every step: giving
// them back and faulting them in again costs up to a quarter of a small model's step. To be called first in
// main; nothing happens where the C library is not glibc.
void keep_freed_memory();

}  // namespace exfusion
