#include "threads.h"

#include <dlfcn.h>

#include "pool.h"

extern "C" {

void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);

int camlens_threads() { return camlens::pool_width(); }
void camlens_threads_set(int threads) { camlens::set_pool_width(threads); }
void camlens_threads_set_background(bool background) { camlens::set_helpers_in_background(background); }
void camlens_threads_begin_run() { camlens::begin_run(); }
void camlens_threads_end_run() { camlens::end_run(); }
uint64_t camlens_threads_rescues() { return camlens::rescues(); }
bool camlens_threads_serve_openmp() {
  return dlsym(RTLD_DEFAULT, "GOMP_parallel") == reinterpret_cast<void*>(&GOMP_parallel);
}

}  // extern "C"
