// The functions of GNU OpenMP that libtorch calls, on camlens's threads (pool.h). The dynamic linker takes a program's
// definition before a shared library's: parallel loops of ATen, oneDNN and MKL end here and not in libgomp.
// https://gcc.gnu.org/onlinedocs/libgomp/The-libgomp-ABI.html
#include <algorithm>
#include <cstdint>
#include <mutex>

#include "pool.h"

using camlens::position;
using camlens::Region;
using camlens::Share;

namespace {

// Threads outside a region are a team of one.
thread_local Region alone(1, nullptr, nullptr);

Region& region() {
  Region* const current = position().region;
  return current ? *current : alone;
}

// Critical sections and atomic blocks without a name.
std::mutex critical, atomic_block;
// Named sections hold a pointer to their own lock.
std::mutex names;

// Hands out the next chunk of the current construct, and waits for its turn to pass on the previous one.
bool next_chunk(bool is_ordered, long* first, long* last) {
  Region& team = region();
  std::unique_lock lock(team.mutex);
  Share& share = team.share(position().constructs, [](Share&) {});
  if (is_ordered && position().chunk > 0) {
    team.changed.wait(lock, [&] { return share.turn == position().chunk; });
    ++share.turn;
    team.changed.notify_all();
  }
  const int64_t left = share.step > 0 ? share.end - share.next : share.next - share.end;
  if (left <= 0) {
    position().chunk = 0;
    return false;
  }
  const int64_t size = share.step > 0 ? share.step : -share.step;
  const int64_t iterations = std::min((left + size - 1) / size, share.chunk);
  *first = static_cast<long>(share.next);
  share.next += iterations * share.step;
  *last = static_cast<long>(share.next);
  position().chunk = ++share.chunks;
  return true;
}

void start_loop(long start, long end, long step, long chunk) {
  Region& team = region();
  const std::lock_guard lock(team.mutex);
  ++position().constructs;
  position().chunk = 0;
  team.share(position().constructs, [&](Share& share) {
    share.next = start;
    share.end = end;
    share.step = step;
    share.chunk = chunk > 0 ? chunk : 1;
    share.turn = 1;
  });
}

void end_loop() {
  Region& team = region();
  const std::lock_guard lock(team.mutex);
  team.leave(position().constructs);
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  camlens::run_region(threads > 0 ? static_cast<int>(threads) : camlens::team_width(), body, data);
}

int omp_get_max_threads() { return camlens::team_width(); }
int omp_get_num_procs() { return camlens::pool_width(); }
int omp_get_num_threads() { return region().parts(); }
int omp_get_thread_num() { return position().part; }
int omp_in_parallel() { return region().parts() > 1; }
void omp_set_num_threads(int threads) { camlens::set_team_width(threads); }

void GOMP_barrier() { region().barrier(); }

void GOMP_critical_start() { critical.lock(); }
void GOMP_critical_end() { critical.unlock(); }
void GOMP_atomic_start() { atomic_block.lock(); }
void GOMP_atomic_end() { atomic_block.unlock(); }

static std::mutex& named(void** name) {
  const std::lock_guard lock(names);
  if (!*name) *name = new std::mutex;
  return *static_cast<std::mutex*>(*name);
}
void GOMP_critical_name_start(void** name) { named(name).lock(); }
void GOMP_critical_name_end(void** name) { named(name).unlock(); }

bool GOMP_single_start() {
  Region& team = region();
  const std::lock_guard lock(team.mutex);
  ++position().constructs;
  bool is_first = false;
  team.share(position().constructs, [&](Share&) { is_first = true; });
  team.leave(position().constructs);
  return is_first;
}

bool GOMP_loop_dynamic_start(long start, long end, long step, long chunk, long* first, long* last) {
  start_loop(start, end, step, chunk);
  return next_chunk(false, first, last);
}
bool GOMP_loop_dynamic_next(long* first, long* last) { return next_chunk(false, first, last); }
bool GOMP_loop_ordered_dynamic_start(long start, long end, long step, long chunk, long* first, long* last) {
  start_loop(start, end, step, chunk);
  return next_chunk(true, first, last);
}
bool GOMP_loop_ordered_dynamic_next(long* first, long* last) { return next_chunk(true, first, last); }
void GOMP_loop_end_nowait() { end_loop(); }
void GOMP_loop_end() {
  end_loop();
  GOMP_barrier();
}

void GOMP_ordered_start() {
  Region& team = region();
  std::unique_lock lock(team.mutex);
  Share& share = team.share(position().constructs, [](Share&) {});
  team.changed.wait(lock, [&] { return share.turn == position().chunk; });
}
void GOMP_ordered_end() {}

unsigned GOMP_sections_next() {
  long first, last;
  return next_chunk(false, &first, &last) ? static_cast<unsigned>(first) : 0;
}
unsigned GOMP_sections_start(unsigned count) {
  start_loop(1, static_cast<long>(count) + 1, 1, 1);
  return GOMP_sections_next();
}
void GOMP_sections_end_nowait() { end_loop(); }

}  // extern "C"
