// The threads that run a model: a team without barriers.
//
// libtorch is compiled for OpenMP, whose teams wait for each of their threads at the end of every operator. On a core
// that it shares, a thread is taken away for milliseconds, and the team waits as long. Here a region is split into
// parts. The calling thread takes parts itself, helpers that are free take others, and at the end the caller waits
// only for helpers that have begun a part. openmp.cpp serves libtorch and oneDNN from here.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace camlens {

// Parts of one region.
constexpr int MAX_PARTS = 64;

// A construct that shares work within a region: a loop with a dynamic schedule, sections, or a single block.
struct Share {
  int64_t next = 0, end = 0, step = 1, chunk = 1;
  // Chunks handed out, and the chunk whose turn it is in an ordered loop.
  int64_t chunks = 0, turn = 0;
  int left = 0;
};

// Work that is split into parts. Each part is run once, by one thread.
class Region {
 public:
  Region(int parts, void (*body)(void*), void* data) : parts_(parts), body_(body), data_(data) {}

  int parts() const { return parts_; }
  // Runs parts that nobody has begun. `begin` is where the thread looks first: neighbouring operators then find their
  // data in the same core's cache.
  void work(int begin);
  bool has_unbegun() const;
  // Gives each part that nobody has begun a thread of its own. Code that waits for another part calls this first.
  void begin_all();
  // Waits for the threads of `begin_all`.
  void join();

  // Waits until every part has arrived.
  void barrier();
  // The `index`th construct of the region; the first part to arrive calls `init`. The mutex is held.
  template <typename Init>
  Share& share(int64_t index, const Init& init) {
    const auto [entry, is_new] = shares_.try_emplace(index);
    if (is_new) init(entry->second);
    return entry->second;
  }
  void leave(int64_t index);

  std::mutex mutex;
  std::condition_variable changed;

 private:
  void run(int part);

  const int parts_;
  void (*const body_)(void*);
  void* const data_;
  std::atomic<uint64_t> begun_{0};
  std::vector<std::thread> rescuers_;
  std::map<int64_t, Share> shares_;
  int arrived_ = 0;
  uint64_t barriers_ = 0;
};

// What the calling thread runs.
struct Position {
  Region* region = nullptr;
  int part = 0;
  // Constructs that this part has met, and its chunk of an ordered loop.
  int64_t constructs = 0, chunk = 0;
};
Position& position();

// Threads of a region that this thread starts, itself included. 0 sets it to the pool's.
int team_width();
void set_team_width(int threads);

// Threads that run models at the same time, callers and helpers. At first one for each processor.
int pool_width();
void set_pool_width(int threads);

// Whether helpers run in the scheduler's idle class: when no thread of another class wants the processor. They cannot
// leave it without a privilege.
void set_helpers_in_background(bool background);

// Runs `body(data)` once for each part, on this thread and helpers that are free. Within a region, `parts` is 1.
void run_region(int parts, void (*body)(void*), void* data);

// A thread that is between `begin_run` and `end_run` counts as busy between its regions too: regions of other threads
// get a helper less.
void begin_run();
void end_run();

// Regions in which a part had to get a thread of its own.
uint64_t rescues();

}  // namespace camlens
