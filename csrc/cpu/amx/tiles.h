// Products of bfloat16 in the tile registers of AMX, summed in float32.
//
// A left tile is 16 rows of 32 entries. A right tile is 16 columns of 32, the entries of rows 2r and 2r + 1 side by
// side, as the processor wants them. Two right tiles make a panel of 32 columns. Unpacking two rows of a matrix fills a
// panel in an order that `in_order` undoes on the sums: keeping the columns in order would shuffle every row of memory
// thrice as often.
//
// The processor counts factors, products and sums below 1.2e-38, the smallest normal float32, as zero.
#pragma once

#include "../buffer.h"
#include "../rows.h"

namespace corrigenda::amx {

constexpr int64_t tile_rows = 16;
constexpr int64_t tile_depth = 32;
constexpr int64_t tile_size = tile_rows * tile_depth;  // bfloat16 of an operand
constexpr int64_t sums_size = tile_rows * tile_rows;   // float32 of a result
constexpr int64_t panel = 32;                          // columns

// Tiles of an operand that are multiplied in one go: a panel of 16 KB and as much of the left matrix fill two thirds of
// the first cache. With 16 the products alone take a tenth longer, with 4 as much more goes into loading sums.
constexpr int64_t depth_at_once = 8;

// Rows that are unpacked side by side, and of which the next are fetched meanwhile: 32 tokens under 32 masks take 12 ms
// so, 14 without. Lists of rows go on so far past their end.
constexpr int64_t rows_ahead = 16;

inline int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

// What the registers hold: 16 rows of 64 bytes each.
struct Shape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Shape) == 64);
constexpr Shape shape;

// The tile registers, for as long as it lives.
class Registers {
 public:
  Registers() { _tile_loadconfig(&shape); }
  ~Registers() { _tile_release(); }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;
};

// sums += left right, or = where `fresh`: one or two rows of left tiles by a panel, `depth` tiles deep. The second
// row's tiles begin `left_below` after the first's, its sums `sums_below` after.
template <bool two>
inline void multiply(const BFloat16* left, int64_t left_below, const BFloat16* right, int64_t depth, bool fresh,
                     float* sums, int64_t sums_below) {
  __asm__ volatile("" ::: "memory");  // GCC's loads of tiles do not say that they read memory
  float* second = sums + sums_below;
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + sums_size, 64);
    if (two) {
      _tile_loadd(2, second, 64);
      _tile_loadd(3, second + sums_size, 64);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    _tile_loadd(6, right + 2 * k * tile_size, 64);
    _tile_loadd(7, right + (2 * k + 1) * tile_size, 64);
    _tile_loadd(4, left + k * tile_size, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (two) {
      _tile_loadd(5, left + left_below + k * tile_size, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + sums_size, 64);
  if (two) {
    _tile_stored(2, second, 64);
    _tile_stored(3, second + sums_size, 64);
  }
}

// The same for any number of rows of left tiles.
inline void multiply_rows(int64_t rows, const BFloat16* left, int64_t left_below, const BFloat16* right, int64_t depth,
                          bool fresh, float* sums, int64_t sums_below) {
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2)
    multiply<true>(left + r * left_below, left_below, right, depth, fresh, sums + r * sums_below, sums_below);
  if (r < rows)
    multiply<false>(left + r * left_below, left_below, right, depth, fresh, sums + r * sums_below, sums_below);
}

// The lanes of `count` entries that are there, of 32 that a vector has.
inline __mmask32 first(int64_t count) { return count < 32 ? (1u << count) - 1 : 0xFFFFFFFF; }

// Columns [from, from + width) of 32 `depth` rows as right tiles, panel after panel; columns beyond are zero.
inline void take_panels(const BFloat16* const* rows, int64_t depth, int64_t from, int64_t width, BFloat16* panels) {
  for (int64_t r = 0; r < depth * tile_depth; r += rows_ahead) {
    BFloat16* to = panels + r / tile_depth * 2 * tile_size + r % tile_depth / 2 * panel;
    for (int64_t j = 0; j < width; j += panel, to += 2 * depth * tile_size)
      for (int64_t k = 0; k < rows_ahead; k += 2) {
        const __m512i a = _mm512_maskz_loadu_epi16(first(width - j), rows[r + k] + from + j);
        const __m512i b = _mm512_maskz_loadu_epi16(first(width - j), rows[r + k + 1] + from + j);
        _mm_prefetch(reinterpret_cast<const char*>(rows[r + k + rows_ahead] + from + j), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(rows[r + k + 1 + rows_ahead] + from + j), _MM_HINT_T1);
        _mm512_store_si512(to + k / 2 * panel, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(to + k / 2 * panel + tile_size, _mm512_unpackhi_epi16(a, b));
      }
  }
}

// The sums of a panel's columns in one row, in the order of the columns.
inline Pair in_order(const float* sums) {
  const Floats low = load(sums), high = load(sums + sums_size);
  return {__builtin_shuffle(low, high, Ints{0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23}),
          __builtin_shuffle(low, high, Ints{8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31})};
}

// The row of `in_order` that is row r of a left tile made of a panel: the first tile's, 4 less than the second's.
inline int64_t row_in_order(int64_t r) { return r / 4 * 8 + r % 4; }

// Row r of a tile transposed in units of 4 bytes: its column r. A right tile becomes a left one so, and the reverse.
inline __m512i transposed(const void* tile, int64_t r) {
  const __m512i places = _mm512_slli_epi32(bit_cast<__m512i>(lane_numbers), 4);
  return _mm512_i32gather_epi32(places, static_cast<const int32_t*>(tile) + r, 4);
}

// 32 values as bfloat16: rounded as `store` does it in a dozen instructions, which took half the time of dmemory.
inline __m512i rounded(const Pair& pair) { return bit_cast<__m512i>(_mm512_cvtne2ps_pbh(pair.b, pair.a)); }

// Lanes of -1 where a value is infinite or not a number.
inline Ints not_finite(Floats value) { return value - value != floats(0); }

}  // namespace corrigenda::amx
