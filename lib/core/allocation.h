// How the C library's allocator treats memory that is freed.
#pragma once

namespace exfusion {

// Freed memory stays with the process, for programs that allocate the same activations in every step: giving
// them back and faulting them in again costs up to a quarter of a small model's step. To be called first in
// main; nothing happens where the C library is not glibc.
void keep_freed_memory();

// Once in a while all the same: after the state of a run is built, say, which takes more than the steps will.
void give_back_freed_memory();

}  // namespace exfusion
