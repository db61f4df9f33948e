// Vector clocks.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fake {

// For each stream, by its index: up to which of its steps everything has happened before.
class Clock {
 public:
  uint64_t of(size_t stream) const { return stream < steps_.size() ? steps_[stream] : 0; }
  bool covers(size_t stream, uint64_t step) const { return of(stream) >= step; }

  bool covers(const Clock& other) const {
    for (size_t stream = 0; stream < other.steps_.size(); ++stream)
      if (!covers(stream, other.steps_[stream])) return false;
    return true;
  }

  void raise(size_t stream, uint64_t step) {
    if (steps_.size() <= stream) steps_.resize(stream + 1);
    steps_[stream] = std::max(steps_[stream], step);
  }

  void join(const Clock& other) {
    for (size_t stream = 0; stream < other.steps_.size(); ++stream) raise(stream, other.steps_[stream]);
  }

 private:
  std::vector<uint64_t> steps_;
};

}  // namespace fake
