// How a C++ failure becomes a status and a text. See bridge.h.
#pragma once
#include "bridge.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

inline char* copy_text(const std::string& text) {
  char* out = static_cast<char*>(std::malloc(text.size() + 1));
  if (out != nullptr) std::memcpy(out, text.c_str(), text.size() + 1);
  return out;
}

// Hands a tensor to the caller, who owns it then.
inline int give(at::Tensor** result, at::Tensor tensor) {
  *result = new at::Tensor(std::move(tensor));
  return CAMLENS_OK;
}

// Runs `body`; turns what it throws into a status and a text.
template <typename Body>
int guarded(char** error, Body body) {
  try {
    return body();
  } catch (const c10::OutOfMemoryError& e) {
    *error = copy_text(e.what_without_backtrace());
    return CAMLENS_OUT_OF_MEMORY;
  } catch (const std::bad_alloc&) {
    *error = copy_text("out of host memory");
    return CAMLENS_OUT_OF_MEMORY;
  } catch (const c10::Error& e) {
    const std::string text = e.what_without_backtrace();
    *error = copy_text(text);
    // The CPU allocator reports exhaustion as a plain error.
    return text.find("DefaultCPUAllocator: can't allocate memory") != std::string::npos ? CAMLENS_OUT_OF_MEMORY : CAMLENS_FAILED;
  } catch (const std::exception& e) {
    *error = copy_text(e.what());
    return CAMLENS_FAILED;
  } catch (...) {
    *error = copy_text("an exception of an unknown type");
    return CAMLENS_FAILED;
  }
}
