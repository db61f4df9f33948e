// What has touched a piece of memory, and whether something else may touch it now.
#pragma once
#include "clock.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fake {

// One step of a stream that reads or writes the bytes from `begin` to `end`.
struct Access {
  size_t stream;
  uint64_t step;
  bool is_write;
  uintptr_t begin, end;
  // The operator. Lives until the process ends.
  const std::string* what;
};

// The text, once for all that ask for it.
const std::string* interned(const std::string& text);

// The accesses to one block of memory, since it was taken from the device: those of earlier tenants too.
class History {
 public:
  // An access that touches the same bytes, is not known to have happened before, and with which `next` must not run at
  // the same time; null if there is none. `known` is what has happened before `next`.
  const Access* race(const Access& next, const Clock& known) const;

  // `over` is what has happened before everything that comes.
  void add(const Access& access, const Clock& over);

 private:
  std::vector<Access> accesses_;
};

}  // namespace fake
