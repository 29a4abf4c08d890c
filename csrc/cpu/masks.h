// Walking the set bits of a mask, and the runs of routed tokens that read one entry.
#pragma once

#include "buffer.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

// Call `function(i)` for the set bits i of [from, to), ascending; `from` is a multiple of 32.
template <class Function>
inline void for_each_bit(const int32_t* mask, int64_t from, int64_t to, Function&& function) {
  for (int64_t word = from / 32; word * 32 < to; ++word)
    for (uint32_t bits = static_cast<uint32_t>(mask[word]); bits; bits &= bits - 1)
      function(word * 32 + __builtin_ctz(bits));
}

// Call `function(begin, size)` for the runs of routes of [begin, end) that have one entry.
template <class Function>
inline void for_each_run(const Routes& routes, int64_t begin, int64_t end, Function&& function) {
  while (begin < end) {
    int64_t size = 1;
    while (begin + size < end && routes.entries[begin + size] == routes.entries[begin]) ++size;
    function(begin, size);
    begin += size;
  }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
