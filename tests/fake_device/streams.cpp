#include "streams.h"

#include "graphs.h"
#include "host.h"
#include "pinned.h"
#include "report.h"

#include <c10/util/Exception.h>

#include <deque>
#include <thread>

namespace fake {
namespace {

// With the lock of host.h held.
std::deque<Stream>& streams() {
  static std::deque<Stream>& all = *new std::deque<Stream>;
  return all;
}

Stream& add_stream(int device, int64_t id) {
  Stream& stream = streams().emplace_back();
  stream.index = streams().size() - 1;
  stream.device = device;
  stream.id = id < 0 ? static_cast<int64_t>(streams().size()) : id;
  return stream;
}

struct Current {
  Current() = default;
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() {
    for (Stream* stream : streams)
      if (stream != nullptr) --stream->users;
  }

  int device = 0;
  // By device; null: the default stream.
  std::vector<Stream*> streams;
};

thread_local Current current;

Time now() { return std::chrono::steady_clock::now(); }

// The host has waited for this. With the lock held.
void learn(const Clock& clock) {
  host_clock().join(clock);
  end_copies();
}

void wait(const Clock& clock, Time finish) {
  std::this_thread::sleep_until(finish);
  check_devices();
  ++counters().synchronizations;
  const std::lock_guard<std::mutex> hold(state_lock());
  learn(clock);
}

// Whether work of which nobody knew is over now, at one more query. With the lock held.
bool poll(const Clock& clock, Time finish, uint64_t& polls) {
  if (host_clock().covers(clock)) return true;
  if (now() < finish || ++polls < settings().polls) return false;
  learn(clock);
  return true;
}

void refuse_captured(const Event& event, const std::string& what) {
  refuse_in_capture(what);
  if (event.capture == 0) return;
  const std::lock_guard<std::mutex> hold(state_lock());
  Capture* const capture = capture_of(event.capture);
  if (capture != nullptr) capture->refuse(what);
  TORCH_CHECK(false, "CUDA error: the event was recorded in a capture: ", what);
}

}  // namespace

std::string Stream::name() const {
  const std::string device_name = " of cuda:" + std::to_string(device);
  return id == 0 ? "the default stream" + device_name : "stream " + std::to_string(id) + device_name;
}

std::string stream_name(size_t stream) { return streams()[stream].name(); }

void check_device(int device) {
  TORCH_CHECK(device >= 0 && device < settings().devices, "CUDA error: invalid device ordinal: ", device);
}

Stream& default_stream(int device) { return stream_of(device, 0); }

Stream& new_stream(int device) {
  check_device(device);
  const std::lock_guard<std::mutex> hold(state_lock());
  return add_stream(device, -1);
}

Stream& stream_of(int device, int64_t id) {
  check_device(device);
  const std::lock_guard<std::mutex> hold(state_lock());
  for (Stream& stream : streams())
    if (stream.device == device && stream.id == id) return stream;
  TORCH_CHECK(id == 0, "CUDA error: invalid resource handle: there is no stream ", id);
  return add_stream(device, 0);
}

void free_stream(Stream& stream) {
  if (stream.users > 0) record_violation(stream.name() + " is freed while it is a thread's current stream");
  const std::lock_guard<std::mutex> hold(state_lock());
  stream.is_freed = true;
}

int current_device() { return current.device; }

void set_device(int device) {
  check_device(device);
  current.device = device;
}

Stream& current_stream(int device) {
  const auto at = static_cast<size_t>(device);
  const bool is_default = at >= current.streams.size() || current.streams[at] == nullptr;
  return is_default ? default_stream(device) : *current.streams[at];
}

Stream& enter(Stream& stream) {
  Stream& last = current_stream(stream.device);
  const auto at = static_cast<size_t>(stream.device);
  if (current.streams.size() <= at) current.streams.resize(at + 1);
  if (current.streams[at] != nullptr) --current.streams[at]->users;
  current.streams[at] = &stream;
  ++stream.users;
  return last;
}

void pass_time(Stream& stream, Time queued) {
  const std::chrono::nanoseconds least(settings().slow_ns);
  stream.finish = std::max(now(), std::max(stream.finish, queued) + least);
}

void record(Event& event, Stream& stream) {
  check_devices();
  const std::lock_guard<std::recursive_mutex> hold_stream(stream.running);
  const std::lock_guard<std::mutex> hold(state_lock());
  if (stream.capture != nullptr) return stream.capture->record(event, stream);
  // Two events of a stream are never at the same time.
  stream.finish = std::max(stream.finish + std::chrono::nanoseconds(1), now());
  event.is_recorded = true;
  event.clock = stream.clock;
  event.finish = stream.finish;
  event.polls = 0;
  event.capture = 0;
}

void block(Event& event, Stream& stream) {
  check_devices();
  const std::lock_guard<std::mutex> hold(state_lock());
  if (!event.is_recorded) return;
  Capture* const capture = event.capture == 0 ? nullptr : capture_of(event.capture);
  if (stream.capture != nullptr && capture != stream.capture)
    stream.capture->refuse("to wait for an event that was recorded outside of the capture");
  if (capture != nullptr) return capture->block(event, stream);
  TORCH_CHECK(event.capture == 0, "CUDA error: the event was recorded in a capture that has ended");
  stream.clock.join(event.clock);
  stream.finish = std::max(stream.finish, event.finish);
}

bool query(Event& event) {
  check_devices();
  refuse_captured(event, "the query of an event");
  const std::lock_guard<std::mutex> hold(state_lock());
  return !event.is_recorded || poll(event.clock, event.finish, event.polls);
}

void synchronize(Event& event) {
  check_devices();
  refuse_captured(event, "to wait for an event on the host");
  Clock clock;
  Time finish;
  {
    const std::lock_guard<std::mutex> hold(state_lock());
    clock = event.clock;
    finish = event.finish;
  }
  wait(clock, finish);
}

double elapsed(const Event& begin, const Event& end) {
  check_devices();
  TORCH_CHECK(begin.has_timing && end.has_timing, "CUDA error: invalid resource handle: an event without timing");
  const std::lock_guard<std::mutex> hold(state_lock());
  for (const Event* event : {&begin, &end}) {
    TORCH_CHECK(event->is_recorded && event->capture == 0, "CUDA error: invalid resource handle: no event recorded");
    TORCH_CHECK(host_clock().covers(event->clock), "CUDA error: device not ready: the event is not over");
  }
  return std::chrono::duration<double, std::milli>(end.finish - begin.finish).count();
}

bool query(Stream& stream) {
  check_devices();
  refuse_in_capture("the query of a stream", &stream);
  const std::lock_guard<std::mutex> hold(state_lock());
  if (stream.polled_step != stream.step) stream.polls = 0;
  stream.polled_step = stream.step;
  return poll(stream.clock, stream.finish, stream.polls);
}

void synchronize(Stream& stream) {
  check_devices();
  refuse_in_capture("to wait for a stream on the host", &stream);
  Clock clock;
  Time finish;
  {
    const std::lock_guard<std::recursive_mutex> hold_stream(stream.running);
    const std::lock_guard<std::mutex> hold(state_lock());
    clock = stream.clock;
    finish = stream.finish;
  }
  wait(clock, finish);
}

void synchronize_device(int device) {
  check_devices();
  check_device(device);
  refuse_in_captures_of(device, "to wait for a device on the host");
  Clock clock;
  Time finish{};
  {
    const std::lock_guard<std::mutex> hold(state_lock());
    for (const Stream& stream : streams()) {
      if (stream.device != device) continue;
      clock.join(stream.clock);
      finish = std::max(finish, stream.finish);
    }
  }
  wait(clock, finish);
}

}  // namespace fake
