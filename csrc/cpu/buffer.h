// Working memory of a kernel: from malloc, aligned to a cache line, not initialised, freed at the end of the scope.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "kernels.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : memory_(static_cast<T*>(std::aligned_alloc(64, (static_cast<size_t>(size) * sizeof(T) + 127) / 64 * 64))) {
    if (!memory_) throw std::bad_alloc();
  }
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return memory_; }
  T& operator[](int64_t i) { return memory_[i]; }

 private:
  T* memory_;
};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
