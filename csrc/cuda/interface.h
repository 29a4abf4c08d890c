// What launchers and their callers share; no torch, and of CUDA only the names of a stream and an error.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef CORRIGENDA_EMULATE
#include "../emulate/cuda_on_cpu.h"
#else
#include <cuda_runtime_api.h>
#endif

// Element types, as launchers take them.
enum DType : int { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3 };
