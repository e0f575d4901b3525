#include "core/allocation.h"

#include <limits>

#if defined(__GLIBC__)  // <limits> has defined it
#include <malloc.h>
#endif

namespace exfusion {

void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 30);  // below, memory comes from the heap, which can be used again
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

void give_back_freed_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace exfusion
