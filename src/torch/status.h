// How a C++ exception becomes a status and a text. This header needs nothing of libtorch.
#pragma once
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>

enum camlens_status {
  CAMLENS_OK = 0,
  CAMLENS_FAILED = 1,         // libtorch or the operator refused: shapes, types, ...
  CAMLENS_OUT_OF_MEMORY = 2,  // on the host or on the device
};

namespace camlens {

// A copy that the caller frees with `camlens_text_free`; null if memory is exhausted.
inline char* copy_text(const std::string& text) {
  char* const copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy != nullptr) std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

// The status for an error with that message, which is copied to `*error`.
inline int failed(char** error, const std::string& message) {
  *error = copy_text(message);
  // libtorch's CPU allocator reports exhaustion as an ordinary error.
  const bool is_exhausted = message.find("DefaultCPUAllocator: can't allocate memory") != std::string::npos;
  return is_exhausted ? CAMLENS_OUT_OF_MEMORY : CAMLENS_FAILED;
}

// Runs `body`, which returns a status, and turns an exception into a status and a text.
template <typename Body>
int guarded(char** error, Body body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    *error = copy_text("out of host memory");
    return CAMLENS_OUT_OF_MEMORY;
  } catch (const std::exception& exception) {
    return failed(error, exception.what());
  } catch (...) {
    *error = copy_text("an exception of an unknown type");
    return CAMLENS_FAILED;
  }
}

}  // namespace camlens
