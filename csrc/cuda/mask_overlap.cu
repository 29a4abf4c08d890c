// mask_overlap by popcount: bound by memory for one to four queries, by POPC above.
#include "mask_overlap.h"

#include <algorithm>

#include "overlap_best.cuh"
#include "primitives.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int LANES = 8;   // threads of a row: 14336 bits are 112 16-byte loads, 14 for each of 8 threads
constexpr int UNROLL = 7;  // loads in flight a thread; popcount_of_seven counts them together
constexpr int ROWS_PER_BLOCK = THREADS / LANES;
constexpr int LINE_WORDS = 32;                    // of 128 bytes
constexpr std::int64_t PREFETCHED_BYTES = 24 << 20;  // half of an H200's L2

// A block takes the stored rows in turns with the other blocks, and counts each against its QUERIES queries.
template <typename Load, int QUERIES>
__global__ __launch_bounds__(THREADS) void count_overlaps(OverlapArguments arguments) {
    constexpr int WORDS = sizeof(Load) / 4;
    DYNAMIC_SHARED(Load, query);  // [QUERIES, loads]
    SHARED_ARRAY(unsigned long long, block_best, QUERIES);
    SHARED_ARRAY(unsigned, is_last, 1);
    const int loads = static_cast<int>(arguments.words / WORDS);
    const std::int64_t first = std::int64_t{blockIdx.y} * QUERIES;
    const int queries = static_cast<int>(min(arguments.batch - first, std::int64_t{QUERIES}));

    for (std::int64_t row = std::int64_t{blockIdx.x} * ROWS_PER_BLOCK + threadIdx.x / LANES; row < arguments.prefetched;
         row += std::int64_t{gridDim.x} * ROWS_PER_BLOCK) {
        const std::uint32_t* mask = arguments.stored + row * arguments.words;
        for (int word = threadIdx.x % LANES * LINE_WORDS; word < arguments.words; word += LANES * LINE_WORDS) {
            prefetch_to_l2(mask + word);
        }
    }
    wait_for_previous_grid();
    const Load* source = reinterpret_cast<const Load*>(arguments.query + first * arguments.words);
    for (int i = threadIdx.x; i < queries * loads; i += THREADS) query[i] = source[i];
    if (threadIdx.x < QUERIES) block_best[threadIdx.x] = 0;
    const std::int64_t rows = rows_seen(arguments);
    __syncthreads();

    const int lane = threadIdx.x % LANES;
    unsigned long long best[QUERIES] = {};
    for (std::int64_t start = std::int64_t{blockIdx.x} * ROWS_PER_BLOCK; start < rows;
         start += std::int64_t{gridDim.x} * ROWS_PER_BLOCK) {
        const std::int64_t row = start + threadIdx.x / LANES;
        bool seen[QUERIES], any = false;
#pragma unroll
        for (int q = 0; q < QUERIES; ++q) {
            seen[q] = q < queries && row < rows && sees(arguments, first + q, row);
            any = any || seen[q];
        }
        const Load* mask = reinterpret_cast<const Load*>(arguments.stored + row * arguments.words);
        int count[QUERIES] = {};
        for (int base = lane; any && base < loads; base += LANES * UNROLL) {
            union {
                Load load[UNROLL];
                unsigned word[UNROLL][WORDS];
            } chunk;
#pragma unroll
            for (int i = 0; i < UNROLL; ++i) {
                const int at = base + i * LANES;
                chunk.load[i] = at < loads ? __ldg(mask + at) : Load{};
            }
#pragma unroll
            for (int q = 0; q < QUERIES; ++q) {
                if (q >= queries) break;
                union {
                    Load load[UNROLL];
                    unsigned word[UNROLL][WORDS];
                } shared;
#pragma unroll
                for (int i = 0; i < UNROLL; ++i) {
                    const int at = base + i * LANES;
                    shared.load[i] = at < loads ? query[q * loads + at] : Load{};
                }
#pragma unroll
                for (int w = 0; w < WORDS; ++w) {
                    unsigned both[UNROLL];
#pragma unroll
                    for (int i = 0; i < UNROLL; ++i) both[i] = chunk.word[i][w] & shared.word[i][w];
                    count[q] += popcount_of_seven(both);
                }
            }
        }
#pragma unroll
        for (int q = 0; q < QUERIES; ++q) {
            const int overlap = lanes_sum<LANES>(count[q]);
            const unsigned long long key = seen[q] ? best_key(overlap, row) : 0;
            best[q] = key > best[q] ? key : best[q];
        }
    }
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) {
        const unsigned long long warp_best = lanes_max(best[q]);
        if (threadIdx.x % WARP_SIZE == 0 && q < queries) atomicMax(&block_best[q], warp_best);
    }
    __syncthreads();
    publish_best(arguments, first, queries, block_best, is_last);
}

// As many blocks as are resident at once; each takes rows until there are none.
template <typename Load, int QUERIES>
cudaError_t launch_count(const OverlapArguments& arguments, int processors, bool early, cudaStream_t stream) {
    constexpr int BLOCKS_PER_PROCESSOR = 3;
    const std::int64_t tiles = ceil_div(arguments.batch, QUERIES);
    const std::int64_t useful = ceil_div(arguments.rows > 0 ? arguments.rows : 1, ROWS_PER_BLOCK);
    const std::int64_t resident = std::int64_t{processors} * BLOCKS_PER_PROCESSOR;
    const dim3 grid(static_cast<unsigned>(useful < resident ? useful : resident), static_cast<unsigned>(tiles));
    const std::size_t shared = QUERIES * arguments.words * 4;
    return early ? launch_early(count_overlaps<Load, QUERIES>, grid, dim3(THREADS), shared, stream, arguments)
                 : launch(count_overlaps<Load, QUERIES>, grid, dim3(THREADS), shared, stream, arguments);
}

template <typename Load>
cudaError_t launch_by_batch(const OverlapArguments& arguments, int processors, bool early, cudaStream_t stream) {
    if (arguments.batch == 1) return launch_count<Load, 1>(arguments, processors, early, stream);
    return launch_count<Load, 4>(arguments, processors, early, stream);
}

}  // namespace

cudaError_t launch_overlap(const OverlapArguments& requested, bool early, cudaStream_t stream) {
    if (requested.batch == 0) return cudaSuccess;
    int processors = 0;
    const cudaError_t status = device_attribute(&processors, cudaDevAttrMultiProcessorCount);
    if (status != cudaSuccess) return status;
    OverlapArguments arguments = requested;
    if (early) arguments.prefetched = std::min(arguments.rows, PREFETCHED_BYTES / (arguments.words * 4));
    const bool vectors = arguments.words % 4 == 0 && is_aligned(arguments.query) && is_aligned(arguments.stored);
    return vectors ? launch_by_batch<uint4>(arguments, processors, early, stream)
                   : launch_by_batch<unsigned>(arguments, processors, early, stream);
}

extern "C" std::size_t corrigenda_mask_overlap_scratch_bytes(std::int64_t batch) {
    return overlap_scratch_bytes(batch);
}

extern "C" cudaError_t corrigenda_mask_overlap(const std::int32_t* query, const std::int32_t* stored,
                                               std::int64_t batch, std::int64_t rows, std::int64_t words,
                                               const std::int32_t* valid, const std::int32_t* query_group,
                                               const std::int32_t* stored_group, std::int32_t* index,
                                               std::int32_t* overlap, void* scratch, cudaStream_t stream) {
    auto* best = static_cast<unsigned long long*>(scratch);
    const OverlapArguments arguments{reinterpret_cast<const std::uint32_t*>(query),
                                     reinterpret_cast<const std::uint32_t*>(stored),
                                     batch, rows, words, valid, query_group, stored_group,
                                     best, reinterpret_cast<unsigned*>(best + batch),
                                     index, overlap, nullptr, nullptr, 0};
    const cudaError_t status = cudaMemsetAsync(scratch, 0, overlap_scratch_bytes(batch), stream);
    return status == cudaSuccess ? launch_overlap(arguments, false, stream) : status;
}
