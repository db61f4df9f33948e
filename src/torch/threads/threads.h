// The interface of the threads for Rust: threads/mod.rs declares it again.
#pragma once
#include <cstdint>

extern "C" {

// Threads that run models at the same time.
int camlens_threads();
void camlens_threads_set(int threads);

// Whether helpers run in the scheduler's idle class.
void camlens_threads_set_background(bool background);

// The calling thread runs a model from here to there.
void camlens_threads_begin_run();
void camlens_threads_end_run();

// Parts that had to get a thread of their own, since the process began.
uint64_t camlens_threads_rescues();

// Whether libtorch's parallel loops end in openmp.cpp.
bool camlens_threads_serve_openmp();

}  // extern "C"
