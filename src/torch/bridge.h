// A C interface to libtorch's dispatcher, for Rust: find an operator by name, read its schema, call it, and compute the
// gradient of one call; and how a tensor lies in memory. tch-rs has no such functions. Nothing else belongs here.
//
// Conventions
//   - No C++ exception leaves these functions. Those that can fail return a status and, unless it is CAMLENS_OK, set
//     `*error` to a text that the caller frees with `camlens_text_free`.
//   - Tensors are passed as `at::Tensor*`, as in tch-rs. A tensor argument is borrowed; the caller owns a tensor that
//     is returned.
//   - A stack holds arguments before a call and results after it. The caller owns it, and one thread uses it at a time.
#pragma once
#include "status.h"

#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

typedef struct camlens_operator camlens_operator;
typedef struct camlens_stack camlens_stack;

enum camlens_kind {
  CAMLENS_NONE = 0,
  CAMLENS_TENSOR = 1,
  CAMLENS_TENSORS = 2,  // a list whose elements may be undefined
  CAMLENS_INT = 3,
  CAMLENS_INTS = 4,
  CAMLENS_FLOAT = 5,
  CAMLENS_FLOATS = 6,
  CAMLENS_BOOL = 7,
  CAMLENS_BOOLS = 8,
  CAMLENS_STRING = 9,
  CAMLENS_OTHER = 10,
};

void camlens_text_free(char* text);

// Operators. `find` sets `*found` to null if there is no operator of that name; that is not an error.
int camlens_operator_find(const char* name, const char* overload, camlens_operator** found, char** error);
void camlens_operator_free(camlens_operator* op);
int camlens_operator_call(const camlens_operator* op, camlens_stack* stack, bool record_gradient, char** error);
// Calls with the arguments in `prepared`, replacing the tensors at `positions`. `*result` is the tensor that the
// operator returns, or null if it returns anything else than one tensor.
int camlens_operator_call_with(const camlens_operator* op, const camlens_stack* prepared, const size_t* positions,
                               const at::Tensor* const* tensors, size_t count, at::Tensor** result, char** error);

// Schema. The texts live as long as the operator, except that of `argument_type`, which the caller frees.
size_t camlens_operator_argument_count(const camlens_operator* op);
size_t camlens_operator_return_count(const camlens_operator* op);
const char* camlens_operator_argument_name(const camlens_operator* op, size_t index);
char* camlens_operator_argument_type(const camlens_operator* op, size_t index);
// 0: no alias; 1: may alias; 2: is written.
int camlens_operator_argument_alias(const camlens_operator* op, size_t index);
int camlens_operator_return_alias(const camlens_operator* op, size_t index);
// Pushes the default value of an argument; `*has` is false if it has none.
int camlens_operator_push_default(const camlens_operator* op, size_t index, camlens_stack* stack, bool* has,
                                  char** error);

// Stacks.
camlens_stack* camlens_stack_new();
void camlens_stack_free(camlens_stack* stack);
size_t camlens_stack_size(const camlens_stack* stack);
void camlens_stack_push_none(camlens_stack* stack);
void camlens_stack_push_tensor(camlens_stack* stack, const at::Tensor* tensor);
void camlens_stack_push_tensors(camlens_stack* stack, const at::Tensor* const* tensors, size_t count);
void camlens_stack_push_optional_tensors(camlens_stack* stack, const at::Tensor* const* tensors, size_t count);
void camlens_stack_push_int(camlens_stack* stack, int64_t value);
void camlens_stack_push_ints(camlens_stack* stack, const int64_t* values, size_t count);
void camlens_stack_push_float(camlens_stack* stack, double value);
void camlens_stack_push_floats(camlens_stack* stack, const double* values, size_t count);
// `Scalar?[]`: a list of numbers whose elements may be absent.
void camlens_stack_push_optional_numbers(camlens_stack* stack, const double* values, size_t count);
void camlens_stack_push_bool(camlens_stack* stack, bool value);
// A number for an argument of type Tensor: a 0-dimensional tensor that takes part in type promotion as a number does.
void camlens_stack_push_wrapped_int(camlens_stack* stack, int64_t value);
void camlens_stack_push_wrapped_float(camlens_stack* stack, double value);
void camlens_stack_push_wrapped_bool(camlens_stack* stack, bool value);
void camlens_stack_push_bools(camlens_stack* stack, const bool* values, size_t count);
void camlens_stack_push_string(camlens_stack* stack, const char* text, size_t length);
// A device: the CPU if `cuda_index` is negative.
void camlens_stack_push_device(camlens_stack* stack, int cuda_index);

int camlens_stack_kind(const camlens_stack* stack, size_t index);
at::Tensor* camlens_stack_tensor(const camlens_stack* stack, size_t index);  // null if undefined
size_t camlens_stack_length(const camlens_stack* stack, size_t index);       // of a list
at::Tensor* camlens_stack_tensors_at(const camlens_stack* stack, size_t index, size_t element);
int64_t camlens_stack_int(const camlens_stack* stack, size_t index);
int64_t camlens_stack_ints_at(const camlens_stack* stack, size_t index, size_t element);
double camlens_stack_float(const camlens_stack* stack, size_t index);
double camlens_stack_floats_at(const camlens_stack* stack, size_t index, size_t element);
bool camlens_stack_bool(const camlens_stack* stack, size_t index);
bool camlens_stack_bools_at(const camlens_stack* stack, size_t index, size_t element);
char* camlens_stack_string(const camlens_stack* stack, size_t index);  // the caller frees

// How a tensor lies in memory. Pointers live as long as the tensor.
struct camlens_view {
  // The address of the storage, 0 if there is none or it is empty, and the tensor's offset in it, in elements.
  uintptr_t storage;
  int64_t offset;
  // The first element; null unless it is a strided tensor on the CPU.
  const void* data;
  // Null unless it is a strided tensor.
  const int64_t* size;
  const int64_t* stride;
  size_t dimensions;
  int64_t element_bytes;
  // ATen's number for the dtype, c10/core/ScalarType.h.
  int kind;
  // Whether it is a strided tensor on the CPU.
  bool is_on_cpu;
  // Whether nothing else holds the tensor or its storage.
  bool is_exclusive;
  // Whether it has a storage and its elements cover distinct, adjacent addresses, in any order of dimensions.
  bool is_dense;
  bool is_contiguous;
  bool is_channels_last;
};
void camlens_tensor_view(const at::Tensor* tensor, camlens_view* view);

// Whether cuDNN and cuBLAS may round float32 operands to TF32, and whether cuDNN times its algorithms and keeps the
// fastest. They hold for the whole process.
int camlens_cuda_options(bool allow_tf32, bool time_algorithms, char** error);

// The gradients of `inputs` from the `gradients` of `outputs`; an output whose gradient is null is left out. `results`
// gets one tensor per input, null if no output depends on it. The graph is retained.
int camlens_gradient(const at::Tensor* const* outputs, const at::Tensor* const* gradients, size_t output_count,
                     const at::Tensor* const* inputs, size_t input_count, at::Tensor** results, char** error);
}
