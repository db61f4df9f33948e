#include "pool.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdio>
#include <memory>
#include <string>
#include <system_error>

namespace camlens {
namespace {

using Word = std::atomic<uint32_t>;
static_assert(sizeof(Word) == sizeof(uint32_t), "a futex is 32 bits");

void futex_wait(Word& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void futex_wake(Word& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Nanoseconds of the monotonic clock.
int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

int processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return std::max(1u, std::thread::hardware_concurrency());
  return std::max(1, CPU_COUNT(&set));
}

constexpr int64_t MICROSECOND = 1000, MILLISECOND = 1000000;
// How long a thread spins for the next region, or for another thread's part, before it sleeps. It is longer than most
// gaps between two operators of a network. Of 20 µs to 2 ms, about this gives a single frame the shortest latency: with
// 100 µs helpers fall asleep within a frame, and 400 µs or more gain nothing.
constexpr int64_t SPIN = 250 * MICROSECOND;
// A thread reads its run delay every DELAY_CHECK. Processors count as crowded for CROWDED once the delay exceeds
// 1/CROWDED_SHARE of the time between two readings. Clients on the same processors make threads wait for a millisecond
// now and then, programs that compute for several at a time.
constexpr int64_t DELAY_CHECK = 5 * MILLISECOND, CROWDED_SHARE = 3, CROWDED = 100 * MILLISECOND;
// How often the watch looks for parts that nobody begins.
constexpr int64_t WATCH = 20 * MILLISECOND;

// Until when the threads' cores are taken to be shared with others.
std::atomic<int64_t> crowded_until{0};

// Whether helpers are to run in the scheduler's idle class.
std::atomic<bool> helpers_in_background{false};

// How long a thread spins before it sleeps: not at all while processors are crowded. A thread that spins there keeps
// away the one that it waits for.
class Patience {
 public:
  // The longest time to spin from now on.
  int64_t limit(int64_t time) {
    check(time);
    return time < crowded_until.load(std::memory_order_relaxed) ? 0 : SPIN;
  }

 private:
  void check(int64_t time) {
    const int64_t since = time - checked_;
    if (since < DELAY_CHECK) return;
    checked_ = time;
    const int64_t delay = run_delay(), more = delay - delay_;
    delay_ = delay;
    if (more > since / CROWDED_SHARE) crowded_until.store(time + CROWDED, std::memory_order_relaxed);
  }

  // Nanoseconds that this thread was ready to run and had no processor; the second field of
  // https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat
  int64_t run_delay() {
    char text[96];
    if (file_ < 0) file_ = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    const ssize_t count = file_ < 0 ? -1 : pread(file_, text, sizeof(text) - 1, 0);
    if (count <= 0) return 0;
    text[count] = 0;
    long long ran = 0, delay = 0;
    return sscanf(text, "%lld %lld", &ran, &delay) == 2 ? delay : 0;
  }

  int64_t checked_ = 0, delay_ = 0;
  int file_ = -1;
};

struct Thread {
  Position position;
  Patience patience;
  int width = 0, runs = 0;
};
thread_local Thread thread;

// A thread that takes parts of other threads' regions.
class Helper {
 public:
  explicit Helper(int index) {
    std::thread([this, index] {
      pthread_setname_np(pthread_self(), ("model-" + std::to_string(index)).c_str());
      loop();
    }).detach();
  }

  // Offers a region. Returns the offer's number, or 0 if the helper is not free.
  uint32_t offer(Region* region, int begin) {
    uint32_t state = state_.load(std::memory_order_relaxed);
    const bool is_asleep = state == ASLEEP;
    if ((state != AWAKE && !is_asleep) || !state_.compare_exchange_strong(state, CLAIMED, std::memory_order_acquire))
      return 0;
    offers_ += OFFER;
    if (offers_ == 0) offers_ = OFFER;
    const uint32_t number = offers_;
    region_ = region;
    begin_ = begin;
    state_.store(number | OFFERED, std::memory_order_release);
    if (is_asleep) futex_wake(state_);
    return number;
  }

  // Takes an offer back, or waits until the helper has done its parts.
  void settle(uint32_t number) {
    uint32_t state = number | OFFERED;
    if (state_.compare_exchange_strong(state, AWAKE, std::memory_order_acquire)) return;
    const int64_t begun = now();
    const int64_t limit = thread.patience.limit(begun);
    for (int64_t time = begun;; time = now()) {
      state = state_.load(std::memory_order_acquire);
      if (state != (number | RUNNING) && state != (number | AWAITED)) break;
      if (time - begun < limit) {
        relax();
      } else if (state == (number | AWAITED) || state_.compare_exchange_strong(state, number | AWAITED)) {
        futex_wait(state_, number | AWAITED);
      }
    }
  }

 private:
  // A free helper spins or sleeps. An offer's states hold its number, so that a later offer is not taken for it.
  enum : uint32_t { AWAKE, ASLEEP, CLAIMED, OFFERED, RUNNING, AWAITED, OFFER = 8 };

  [[noreturn]] void loop() {
    int64_t since = now();
    for (;;) {
      uint32_t state = state_.load(std::memory_order_acquire);
      const uint32_t number = state - state % OFFER;
      if (state == (number | OFFERED)) {
        if (!state_.compare_exchange_strong(state, number | RUNNING, std::memory_order_acquire)) continue;
        enter_class();
        region_->work(begin_);
        if (state_.exchange(AWAKE, std::memory_order_acq_rel) == (number | AWAITED)) futex_wake(state_);
        since = now();
        continue;
      }
      const int64_t time = now();
      if (state != AWAKE || time - since < thread.patience.limit(time)) {
        relax();
      } else if (state_.compare_exchange_strong(state, ASLEEP, std::memory_order_relaxed)) {
        while (state_.load(std::memory_order_relaxed) == ASLEEP) futex_wait(state_, ASLEEP);
      }
    }
  }

  void enter_class() {
    const bool background = helpers_in_background.load(std::memory_order_relaxed);
    if (background == is_in_background_) return;
    is_in_background_ = background;
    const sched_param parameters{};
    sched_setscheduler(0, background ? SCHED_IDLE : SCHED_OTHER, &parameters);
  }

  bool is_in_background_ = false;
  Word state_{AWAKE};
  // Of the last offer. Whoever has claimed the helper writes them.
  uint32_t offers_ = 0;
  Region* region_ = nullptr;
  int begin_ = 0;
};

// A thread that starts regions, and the one that it is in.
struct Caller {
  std::mutex mutex;
  Region* region = nullptr;
  uint64_t regions = 0, seen = 0;
};

class Pool {
 public:
  static Pool& get() {
    // Helpers live as long as the process.
    static Pool* const pool = new Pool;
    return *pool;
  }

  int width() const { return width_.load(std::memory_order_relaxed); }

  void resize(int threads) {
    const std::lock_guard lock(mutex_);
    const int width = std::clamp(threads, 1, MAX_PARTS);
    for (; helpers_ < width - 1; ++helpers_) helper_[helpers_] = new Helper(helpers_ + 1);
    width_.store(width, std::memory_order_release);
  }

  void run(Region& region, Caller& caller) {
    enter(caller, &region);
    // The thread itself is busy, whether it says so or not.
    const int others = busy_.load(std::memory_order_relaxed) - (thread.runs > 0 ? 1 : 0);
    const int team = std::min({team_width(), width() - others, region.parts()});
    struct {
      Helper* helper;
      uint32_t number;
    } offers[MAX_PARTS];
    int count = 0;
    const int helpers = width_.load(std::memory_order_acquire) - 1;
    for (int i = 0; i < helpers && count + 1 < team; ++i) {
      const uint32_t number = helper_[i]->offer(&region, (count + 1) * region.parts() / team);
      if (number != 0) offers[count++] = {helper_[i], number};
    }
    region.work(0);
    for (int i = 0; i < count; ++i) offers[i].helper->settle(offers[i].number);
    enter(caller, nullptr);
    region.join();
  }

  void begin_run() {
    if (thread.runs++ == 0) busy_.fetch_add(1, std::memory_order_relaxed);
  }
  void end_run() {
    if (--thread.runs == 0) busy_.fetch_sub(1, std::memory_order_relaxed);
  }

  void add(const std::shared_ptr<Caller>& caller) {
    const std::lock_guard lock(mutex_);
    callers_.push_back(caller);
  }

 private:
  Pool() {
    resize(processors());
    std::thread([this] {
      pthread_setname_np(pthread_self(), "model-watch");
      watch();
    }).detach();
  }

  void enter(Caller& caller, Region* region) {
    {
      const std::lock_guard lock(caller.mutex);
      caller.region = region;
      ++caller.regions;
    }
    // A watch that went to sleep before this thread took the mutex is seen; one that does so later sees the region.
    if (!region) return;
    if (watch_asleep_.load(std::memory_order_relaxed) && watch_asleep_.exchange(0)) futex_wake(watch_asleep_);
  }

  // Code that spins for another part, without a word to OpenMP, would wait for ever if nobody began that part: the
  // helpers may be busy elsewhere. A region that is still the same after a while gets all its threads.
  [[noreturn]] void watch() {
    for (int quiet = 0;;) {
      quiet = look() ? 0 : quiet + 1;
      if (quiet < 3) {
        std::this_thread::sleep_for(std::chrono::nanoseconds(WATCH));
        continue;
      }
      watch_asleep_.store(1);
      if (look()) {
        watch_asleep_.store(0);
      } else {
        while (watch_asleep_.load()) futex_wait(watch_asleep_, 1);
      }
      quiet = 0;
    }
  }

  // Whether any thread has been in a region since the last look.
  bool look() {
    const std::lock_guard lock(mutex_);
    bool is_active = false;
    callers_.erase(std::remove_if(callers_.begin(), callers_.end(),
                                  [&](const std::weak_ptr<Caller>& weak) {
                                    const std::shared_ptr<Caller> caller = weak.lock();
                                    if (!caller) return true;
                                    const std::lock_guard lock(caller->mutex);
                                    is_active |= caller->region || caller->regions != caller->seen;
                                    const bool is_same = caller->regions == caller->seen;
                                    if (is_same && caller->region && caller->region->has_unbegun()) {
                                      caller->region->begin_all();
                                    }
                                    caller->seen = caller->regions;
                                    return false;
                                  }),
                   callers_.end());
    return is_active;
  }

  std::mutex mutex_;
  std::atomic<int> width_{1}, busy_{0};
  int helpers_ = 0;
  Helper* helper_[MAX_PARTS] = {};
  std::vector<std::weak_ptr<Caller>> callers_;
  Word watch_asleep_{0};
};

std::atomic<uint64_t> rescued{0};

Caller& this_caller() {
  thread_local const std::shared_ptr<Caller> caller = [] {
    auto caller = std::make_shared<Caller>();
    Pool::get().add(caller);
    return caller;
  }();
  return *caller;
}

}  // namespace

void Region::run(int part) {
  const Position before = thread.position;
  thread.position = Position{this, part, 0, 0};
  body_(data_);
  thread.position = before;
}

void Region::work(int begin) {
  for (int i = 0; i < parts_; ++i) {
    const int part = begin + i < parts_ ? begin + i : begin + i - parts_;
    const uint64_t bit = uint64_t{1} << part;
    if (begun_.load(std::memory_order_relaxed) & bit) continue;
    if (begun_.fetch_or(bit, std::memory_order_relaxed) & bit) continue;
    run(part);
  }
}

bool Region::has_unbegun() const {
  const uint64_t all = parts_ == MAX_PARTS ? ~uint64_t{0} : (uint64_t{1} << parts_) - 1;
  return (begun_.load(std::memory_order_relaxed) & all) != all;
}

void Region::begin_all() {
  if (!has_unbegun()) return;
  const std::lock_guard lock(mutex);
  for (int part = 0; part < parts_; ++part) {
    const uint64_t bit = uint64_t{1} << part;
    if (begun_.fetch_or(bit, std::memory_order_relaxed) & bit) continue;
    try {
      rescuers_.emplace_back([this, part] { run(part); });
    } catch (const std::system_error&) {
      // No thread can be had. Whoever comes next may begin the part.
      begun_.fetch_and(~bit, std::memory_order_relaxed);
      return;
    }
    rescued.fetch_add(1, std::memory_order_relaxed);
  }
}

void Region::join() {
  std::vector<std::thread> rescuers;
  {
    const std::lock_guard lock(mutex);
    rescuers.swap(rescuers_);
  }
  for (std::thread& rescuer : rescuers) rescuer.join();
}

void Region::barrier() {
  if (parts_ == 1) return;
  begin_all();
  std::unique_lock lock(mutex);
  const uint64_t number = barriers_;
  if (++arrived_ == parts_) {
    arrived_ = 0;
    ++barriers_;
    changed.notify_all();
  } else {
    changed.wait(lock, [&] { return barriers_ != number; });
  }
}

void Region::leave(int64_t index) {
  const auto entry = shares_.find(index);
  if (++entry->second.left == parts_) shares_.erase(entry);
}

Position& position() { return thread.position; }
int team_width() { return thread.width > 0 ? thread.width : pool_width(); }
void set_team_width(int threads) { thread.width = std::clamp(threads, 0, MAX_PARTS); }
int pool_width() { return Pool::get().width(); }
void set_pool_width(int threads) { Pool::get().resize(threads); }
void set_helpers_in_background(bool background) { helpers_in_background.store(background); }
void begin_run() { Pool::get().begin_run(); }
void end_run() { Pool::get().end_run(); }
uint64_t rescues() { return rescued.load(std::memory_order_relaxed); }

void run_region(int parts, void (*body)(void*), void* data) {
  if (thread.position.region) parts = 1;
  Region region(std::clamp(parts, 1, MAX_PARTS), body, data);
  if (region.parts() == 1) {
    region.work(0);
  } else {
    Pool::get().run(region, this_caller());
  }
}

}  // namespace camlens
