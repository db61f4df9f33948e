// Streams and events. Work runs when it is queued; what a stream has waited for is in its clock, and the time that the
// device takes is reckoned.
#pragma once
#include "clock.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace fake {

class Capture;

using Time = std::chrono::steady_clock::time_point;

struct Stream {
  // In clocks, among the streams of all devices.
  size_t index;
  int device;
  // In c10::Stream; the default stream has 0.
  int64_t id;
  // Held while work of the stream runs: two threads may queue on one stream.
  std::recursive_mutex running;

  // The rest is guarded by the lock of host.h. What has happened before the work that is queued next, beside what the
  // host knows.
  Clock clock;
  uint64_t step = 0;
  Time finish{};
  // Queries since the step.
  uint64_t polls = 0, polled_step = 0;
  // The capture that records it, null if none does, and its number among the streams of the capture.
  Capture* capture = nullptr;
  size_t branch = 0;
  bool is_freed = false;
  // Of how many threads it is the current stream.
  std::atomic<int> users{0};

  std::string name() const;
};

// By its index.
std::string stream_name(size_t stream);

// Throws if there is no such device.
void check_device(int device);

// The device's first stream. It waits for no other one, and none for it.
Stream& default_stream(int device);
Stream& new_stream(int device);
Stream& stream_of(int device, int64_t id);
// After this, work on it is a violation.
void free_stream(Stream& stream);

// Of the calling thread.
int current_device();
void set_device(int device);
Stream& current_stream(int device);
// Returns the one before.
Stream& enter(Stream& stream);

// The work's time on the device, from the moment that it may begin to at least now. With the host's lock held.
void pass_time(Stream& stream, Time queued);

struct Event {
  explicit Event(bool timing = false) : has_timing(timing) {}

  bool has_timing;
  bool is_recorded = false;
  Clock clock;
  Time finish{};
  uint64_t polls = 0;
  // The capture in which it was recorded, 0 if in none, and its number there.
  uint64_t capture = 0;
  size_t slot = 0;
};

void record(Event& event, Stream& stream);
void block(Event& event, Stream& stream);
bool query(Event& event);
void synchronize(Event& event);
// In milliseconds.
double elapsed(const Event& begin, const Event& end);

bool query(Stream& stream);
void synchronize(Stream& stream);
void synchronize_device(int device);

}  // namespace fake
