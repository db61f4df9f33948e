// Scratch memory of a thread, kept between calls: fresh pages would take longer than the work done in them.
#pragma once
#include <cstdint>
#include <vector>

namespace camlens {

// What one thread keeps of one kind of scratch memory between calls, at most.
constexpr int64_t SCRATCH_BYTES = 8 << 20;

// Makes room for `count` elements; never shrinks.
template <typename T>
void grow(std::vector<T>& vector, int64_t count) {
  if (static_cast<int64_t>(vector.size()) < count) vector.resize(count);
}

}  // namespace camlens
