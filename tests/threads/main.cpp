// Proves the threads that run models (src/torch/threads) under ThreadSanitizer, with loops that a compiler made of
// OpenMP's pragmas: three threads start regions on a pool of sixteen, however few processors there are. run.sh builds
// it. Loops are monotonic, as in libtorch: GCC has other functions for those that are not.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../../src/torch/threads/pool.h"

namespace {

#define CHECK(holds)                                                        \
  do {                                                                      \
    if (!(holds)) {                                                         \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #holds); \
      abort();                                                              \
    }                                                                       \
  } while (0)

// As at::parallel_for splits a loop.
void ranges(int count) {
  std::vector<int> found(count);
#pragma omp parallel
  {
    const int part = omp_get_thread_num(), parts = omp_get_num_threads();
    for (int i = part * count / parts; i < (part + 1) * count / parts; ++i) found[i] = i;
  }
  for (int i = 0; i < count; ++i) CHECK(found[i] == i);
}

// Every construct of OpenMP that libtorch's libraries use.
void constructs() {
  int singles = 0, sections = 0, named = 0;
  long total = 0;
  std::vector<int> order;
#pragma omp parallel num_threads(5)
  {
#pragma omp single
    ++singles;
    CHECK(singles == 1);
#pragma omp for schedule(monotonic : dynamic, 3)
    for (int i = 0; i < 100; ++i) {
#pragma omp critical
      total += i;
    }
    CHECK(total == 4950);
#pragma omp for schedule(monotonic : dynamic, 1) ordered
    for (int i = 0; i < 20; ++i) {
#pragma omp ordered
      order.push_back(i);
    }
#pragma omp sections nowait
    {
#pragma omp section
      {
#pragma omp critical
        sections += 1;
      }
#pragma omp section
      {
#pragma omp critical
        sections += 10;
      }
    }
#pragma omp critical(named)
    ++named;
#pragma omp for schedule(monotonic : dynamic, 1) nowait
    for (int i = 10; i > 0; i -= 3) {
#pragma omp critical
      total -= i;
    }
#pragma omp barrier
    CHECK(named == 5 && sections == 11);
  }
  CHECK(singles == 1 && sections == 11 && named == 5 && total == 4950 - 10 - 7 - 4 - 1);
  CHECK(order.size() == 20 && std::is_sorted(order.begin(), order.end()));
}

void nested() {
  std::atomic<int> inner{0};
#pragma omp parallel num_threads(4)
  {
    CHECK(omp_in_parallel());
#pragma omp parallel num_threads(4)
    {
      CHECK(omp_get_num_threads() == 1 && omp_get_thread_num() == 0);
      ++inner;
    }
  }
  CHECK(inner == 4 && !omp_in_parallel() && omp_get_num_threads() == 1);
}

// Parts that wait for each other without a word to OpenMP, and more of them than free threads.
void wait_for_each_other() {
  std::atomic<int> here{0};
#pragma omp parallel num_threads(40)
  {
    ++here;
    while (here < 40) std::this_thread::yield();
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? atoi(arguments[1]) : 100;
  camlens::set_pool_width(16);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([=] {
      for (int round = 0; round < rounds; ++round) {
        // One of them leaves the others fewer helpers.
        if (caller == 0) camlens::begin_run();
        ranges(1 + round * 37 % 5000);
        constructs();
        nested();
        if (caller == 0) camlens::end_run();
      }
    });
  }
  // The pool changes its size meanwhile.
  for (int width : {3, 1, 9, 16}) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    camlens::set_pool_width(width);
  }
  for (std::thread& caller : callers) caller.join();
  const auto before = camlens::rescues();
  wait_for_each_other();
  CHECK(camlens::rescues() > before);
  printf("%d rounds, %lu parts got a thread of their own\n", rounds, static_cast<unsigned long>(camlens::rescues()));
}
