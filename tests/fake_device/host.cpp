#include "host.h"

namespace fake {

std::mutex& state_lock() {
  static std::mutex& lock = *new std::mutex;
  return lock;
}

Clock& host_clock() {
  static Clock& clock = *new Clock;
  return clock;
}

Clock& queued_clock() {
  static Clock& clock = *new Clock;
  return clock;
}

}  // namespace fake
