// The wheel's header of its Gloo backend includes Gloo's own headers, which it does not ship. What it needs
// of them is declared in this folder; the definitions are in libtorch_cpu.so.
#pragma once
#include "gloo/context.h"
