// The fortified longjmp refuses to jump to another stack.
#undef _FORTIFY_SOURCE

#include "twin.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "kernels.cuh"

namespace camlens::cuda {

namespace {

constexpr size_t STACK_BYTES = 32 << 10;

// The threads of a block, as coroutines of the calling thread: each runs up to its next barrier or its end. They serve
// one block after the other. Switches are jumps, since swapcontext makes system calls.
class Fibers {
 public:
  // `body` is what a thread of a block does.
  Fibers(uint32_t threads, ThreadOrder order, std::function<void()> body)
      : fibers_(threads), order_(order), body_(std::move(body)) {
    for (Fiber& fiber : fibers_) {
      fiber.stack.reset(new char[STACK_BYTES]);
      getcontext(&fiber.begin);
      fiber.begin.uc_stack.ss_sp = fiber.stack.get();
      fiber.begin.uc_stack.ss_size = STACK_BYTES;
      makecontext(&fiber.begin, &Fibers::serve, 0);
    }
    current = this;
  }
  ~Fibers() {
    current = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    for (Fiber& fiber : fibers_) __asan_unpoison_memory_region(fiber.stack.get(), STACK_BYTES);
#endif
  }

  // Runs a block. False if some of its threads are at a barrier and others have ended.
  bool run() {
    for (;;) {
      size_t ended = 0;
      for (size_t i = 0; i < fibers_.size(); ++i) {
        const size_t thread = order_ == ThreadOrder::ASCENDING ? i : fibers_.size() - 1 - i;
        threadIdx.x = static_cast<uint32_t>(thread);
        resume(fibers_[thread]);
        ended += fibers_[thread].has_ended;
      }
      if (ended == fibers_.size()) return true;
      if (ended != 0) return false;
    }
  }

  // Called by the thread of the block that runs: goes back to `run`, until that resumes the thread.
  void wait() { suspend(*running_); }

  // Those of the calling thread; null unless a kernel with barriers runs.
  static thread_local Fibers* current;

 private:
  struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t begin;
    jmp_buf point;
    bool has_begun = false, has_ended = false;
    void* asan_stack = nullptr;
  };

  // AddressSanitizer must know on which stack the thread is: `leave` is called before a switch, `enter` after it.
  static void leave([[maybe_unused]] void** asan_stack, [[maybe_unused]] const void* stack,
                    [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(asan_stack, stack, bytes);
#endif
  }
  static void enter([[maybe_unused]] void* asan_stack, [[maybe_unused]] const void** stack,
                    [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(asan_stack, stack, bytes);
#endif
  }

  void resume(Fiber& fiber) {
    running_ = &fiber;
    leave(&asan_stack_, fiber.stack.get(), STACK_BYTES);
    if (_setjmp(point_) == 0) go_to(fiber);
    enter(asan_stack_, nullptr, nullptr);
  }

  void suspend(Fiber& fiber) {
    leave(&fiber.asan_stack, main_stack_, main_stack_bytes_);
    if (_setjmp(fiber.point) == 0) go_back();
    enter(current->running_->asan_stack, &current->main_stack_, &current->main_stack_bytes_);
  }

  [[noreturn]] void go_to(Fiber& fiber) {
    if (fiber.has_begun) _longjmp(fiber.point, 1);
    fiber.has_begun = true;
    setcontext(&fiber.begin);
    std::abort();
  }

  [[noreturn]] void go_back() { _longjmp(point_, 1); }

  // What a fiber does: runs one block after the other.
  static void serve() {
    Fibers& fibers = *current;
    enter(nullptr, &fibers.main_stack_, &fibers.main_stack_bytes_);
    Fiber& fiber = *fibers.running_;
    for (;;) {
      fiber.has_ended = false;
      fibers.body_();
      fiber.has_ended = true;
      fibers.suspend(fiber);
    }
  }

  std::vector<Fiber> fibers_;
  ThreadOrder order_;
  std::function<void()> body_;
  Fiber* running_ = nullptr;
  // Of the calling thread.
  jmp_buf point_;
  void* asan_stack_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
};

thread_local Fibers* Fibers::current = nullptr;

// Whether a kernel that has no barrier has reached one.
thread_local bool has_stray_barrier = false;

template <typename... Types, size_t... INDICES>
void call(void (*function)(Types...), void** arguments, std::index_sequence<INDICES...>) {
  std::tuple<Types...> values;
  (std::memcpy(&std::get<INDICES>(values), arguments[INDICES], sizeof(Types)), ...);
  function(std::get<INDICES>(values)...);
}

template <typename... Types>
std::function<void(void**)> caller(void (*function)(Types...)) {
  return [function](void** arguments) { call(function, arguments, std::index_sequence_for<Types...>()); };
}

template <typename Type>
constexpr Parameter parameter() {
  if (std::is_pointer_v<Type>) return Parameter::POINTER;
  static_assert(std::is_pointer_v<Type> || std::is_same_v<Type, int64_t> || std::is_same_v<Type, float>);
  return std::is_same_v<Type, float> ? Parameter::FLOAT32 : Parameter::INT64;
}

template <typename... Types>
std::vector<Parameter> parameters(void (*)(Types...)) {
  return {parameter<Types>()...};
}

struct TwinKernel {
  std::function<void(void**)> call[ELEMENT_COUNT];
  std::vector<Parameter> parameters;
  bool has_barriers;
};

#define CAMLENS_TWIN(name, has_barriers)                                                                    \
  {{caller(camlens_##name##_float32), caller(camlens_##name##_float16), caller(camlens_##name##_bfloat16)}, \
   parameters(camlens_##name##_float32),                                                                    \
   has_barriers}

const TwinKernel& twin_of(Kernel kernel) {
  static const TwinKernel kernels[KERNEL_COUNT] = {CAMLENS_TWIN(gate, false),     CAMLENS_TWIN(sum, false),
                                                   CAMLENS_TWIN(epilogue, false), CAMLENS_TWIN(cam_weights, true),
                                                   CAMLENS_TWIN(cam_map, true),   CAMLENS_TWIN(fuse, false),
                                                   CAMLENS_TWIN(normalize, true)};
  return kernels[static_cast<int32_t>(kernel)];
}

#undef CAMLENS_TWIN

}  // namespace

void __syncthreads() {
  if (Fibers::current == nullptr) {
    has_stray_barrier = true;
  } else {
    Fibers::current->wait();
  }
}

bool run_twin(Kernel kernel, Element element, uint32_t grid, uint32_t block, uint32_t shared_bytes, void** arguments,
              ThreadOrder order) {
  const TwinKernel& twin = twin_of(kernel);
  const std::function<void(void**)>& call = twin.call[static_cast<int32_t>(element)];
  const std::unique_ptr<float, decltype(&std::free)> shared(static_cast<float*>(std::malloc(shared_bytes)), &std::free);
  shared_memory = shared.get();
  gridDim.x = grid;
  blockDim.x = block;
  has_stray_barrier = false;
  bool is_right = true;
  std::optional<Fibers> fibers;
  if (twin.has_barriers) fibers.emplace(block, order, [&] { call(arguments); });
  for (blockIdx.x = 0; is_right && blockIdx.x < grid; ++blockIdx.x) {
    // All bits 1 are a NaN.
    if (shared_bytes != 0) std::memset(shared.get(), 0xff, shared_bytes);
    if (fibers) {
      is_right = fibers->run();
      continue;
    }
    for (uint32_t i = 0; i < block; ++i) {
      threadIdx.x = order == ThreadOrder::ASCENDING ? i : block - 1 - i;
      call(arguments);
    }
    is_right = !has_stray_barrier;
  }
  return is_right;
}

std::vector<Parameter> twin_parameters(Kernel kernel) { return twin_of(kernel).parameters; }

}  // namespace camlens::cuda
