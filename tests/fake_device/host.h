// What the host knows, and the lock of all that the fake device remembers.
#pragma once
#include "clock.h"

#include <mutex>

namespace fake {

// Guards blocks, clocks and events. It is not held while an operator runs.
std::mutex& state_lock();

// With the lock held: what the host has waited for. One clock serves all threads: how they wait for each other is not
// seen, so whatever one thread knows counts as known by all.
Clock& host_clock();

// With the lock held: for each stream, the last step that is queued.
Clock& queued_clock();

}  // namespace fake
