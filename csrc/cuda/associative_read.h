// associative_read and its gradients, for their bindings. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

extern "C" {
// `max_pages` is the width of the page table.
std::size_t corrigenda_associative_read_scratch_bytes(std::int64_t tokens, std::int64_t width, std::int64_t max_pages);
std::size_t corrigenda_associative_read_backward_scratch_bytes(std::int64_t tokens, std::int64_t max_pages);

// `out` may be `y`: then rows of tokens that get nothing are not written. `scales` is null but for int8 values.
cudaError_t corrigenda_associative_read(const void* y, int y_dtype, const void* x, int x_dtype, const bool* first,
                                        const void* keys, int keys_dtype, const void* values, int values_dtype,
                                        const std::int32_t* pages, const std::int32_t* rows, const std::int32_t* route,
                                        const float* background, float beta, const float* scales, std::int64_t tokens,
                                        std::int64_t width, std::int64_t outputs, std::int64_t max_pages, void* out,
                                        void* scratch, cudaStream_t stream);

// `banks` is the number of pages of the banks. The gradients are written in full, or null where they are not wanted.
cudaError_t corrigenda_associative_read_backward(
    const void* grad, int grad_dtype, const void* x, int x_dtype, const bool* first, const void* keys, int keys_dtype,
    const void* values, int values_dtype, const std::int32_t* pages, const std::int32_t* rows,
    const std::int32_t* route, const float* background, float beta, std::int64_t tokens, std::int64_t width,
    std::int64_t outputs, std::int64_t edits, std::int64_t max_pages, std::int64_t banks, void* dx, void* dkeys,
    void* dvalues, void* scratch, cudaStream_t stream);
}
