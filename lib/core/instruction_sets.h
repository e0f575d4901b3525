// One plain function, compiled for several instruction sets and chosen once at load time. With contraction
// off (exfusion_options) IEEE arithmetic gives each of them the same bits; only the speed differs.
#pragma once

// Sanitizers run before the loader has resolved such functions, so their builds take the plain one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define EXFUSION_INSTRUCTION_SETS \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EXFUSION_INSTRUCTION_SETS
#endif
