// Working memory of a kernel, kept from call to call: giving 300 KB back to the system and faulting it in again took
// longer than the masks made in it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "kernels.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

// Memory that only grows, aligned to a cache line. Make it `thread_local`.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least `size` elements, whatever they hold; earlier ones are lost if there were fewer.
  T* reserve(int64_t size) {
    if (size > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = static_cast<T*>(std::aligned_alloc(64, (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64));
      if (!memory_) throw std::bad_alloc();
      size_ = size;
    }
    return memory_;
  }

 private:
  T* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
