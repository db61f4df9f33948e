#include "bridge.h"

#include <ATen/ScalarOps.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <vector>

struct camlens_operator {
  c10::OperatorHandle handle;
};

struct camlens_stack {
  std::vector<c10::IValue> values;
};

namespace {

int alias_of(const c10::Argument& argument) {
  const c10::AliasInfo* info = argument.alias_info();
  if (info == nullptr) return 0;
  return info->isWrite() ? 2 : 1;
}

at::Tensor wrapped(const c10::Scalar& number) {
  at::Tensor tensor = c10::scalar_to_tensor(number);
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

// Runs `body`, which returns a status, and turns libtorch's exceptions into a status and a text without the stack
// trace.
template <typename Body>
int guarded(char** error, Body body) {
  return camlens::guarded(error, [&]() -> int {
    try {
      return body();
    } catch (const c10::OutOfMemoryError& exception) {
      *error = camlens::copy_text(exception.what_without_backtrace());
      return CAMLENS_OUT_OF_MEMORY;
    } catch (const c10::Error& exception) {
      return camlens::failed(error, exception.what_without_backtrace());
    }
  });
}

at::Tensor* give(const at::Tensor& tensor) { return tensor.defined() ? new at::Tensor(tensor) : nullptr; }

}  // namespace

extern "C" {

void camlens_text_free(char* text) { std::free(text); }

int camlens_operator_find(const char* name, const char* overload, camlens_operator** found, char** error) {
  *found = nullptr;
  return guarded(error, [&]() -> int {
    const auto handle = c10::Dispatcher::singleton().findSchema(c10::OperatorName(name, overload));
    if (handle.has_value()) *found = new camlens_operator{*handle};
    return CAMLENS_OK;
  });
}

void camlens_operator_free(camlens_operator* op) { delete op; }

int camlens_operator_call(const camlens_operator* op, camlens_stack* stack, bool record_gradient, char** error) {
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(record_gradient);
    op->handle.callBoxed(&stack->values);
    return CAMLENS_OK;
  });
}

int camlens_operator_call_with(const camlens_operator* op, const camlens_stack* prepared, const size_t* positions,
                               const at::Tensor* const* tensors, size_t count, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    std::vector<c10::IValue> values = prepared->values;
    for (size_t i = 0; i < count; ++i) values.at(positions[i]) = *tensors[i];
    op->handle.callBoxed(&values);
    if (values.size() == 1 && values[0].isTensor()) *result = give(values[0].toTensor());
    return CAMLENS_OK;
  });
}

size_t camlens_operator_argument_count(const camlens_operator* op) { return op->handle.schema().arguments().size(); }

size_t camlens_operator_return_count(const camlens_operator* op) { return op->handle.schema().returns().size(); }

const char* camlens_operator_argument_name(const camlens_operator* op, size_t index) {
  return op->handle.schema().arguments()[index].name().c_str();
}

char* camlens_operator_argument_type(const camlens_operator* op, size_t index) {
  return camlens::copy_text(op->handle.schema().arguments()[index].type()->str());
}

int camlens_operator_argument_alias(const camlens_operator* op, size_t index) {
  return alias_of(op->handle.schema().arguments()[index]);
}

int camlens_operator_return_alias(const camlens_operator* op, size_t index) {
  return alias_of(op->handle.schema().returns()[index]);
}

int camlens_operator_push_default(const camlens_operator* op, size_t index, camlens_stack* stack, bool* has,
                                  char** error) {
  return guarded(error, [&]() -> int {
    const auto& value = op->handle.schema().arguments()[index].default_value();
    *has = value.has_value();
    if (value.has_value()) stack->values.push_back(*value);
    return CAMLENS_OK;
  });
}

camlens_stack* camlens_stack_new() { return new camlens_stack{}; }

void camlens_stack_free(camlens_stack* stack) { delete stack; }

size_t camlens_stack_size(const camlens_stack* stack) { return stack->values.size(); }

void camlens_stack_push_none(camlens_stack* stack) { stack->values.emplace_back(); }

void camlens_stack_push_tensor(camlens_stack* stack, const at::Tensor* tensor) { stack->values.emplace_back(*tensor); }

void camlens_stack_push_tensors(camlens_stack* stack, const at::Tensor* const* tensors, size_t count) {
  c10::List<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(*tensors[i]);
  stack->values.emplace_back(std::move(list));
}

void camlens_stack_push_optional_tensors(camlens_stack* stack, const at::Tensor* const* tensors, size_t count) {
  c10::List<std::optional<at::Tensor>> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    if (tensors[i] == nullptr) {
      list.push_back(std::nullopt);
    } else {
      list.push_back(*tensors[i]);
    }
  }
  stack->values.emplace_back(std::move(list));
}

void camlens_stack_push_int(camlens_stack* stack, int64_t value) { stack->values.emplace_back(value); }

void camlens_stack_push_ints(camlens_stack* stack, const int64_t* values, size_t count) {
  c10::List<int64_t> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(values[i]);
  stack->values.emplace_back(std::move(list));
}

void camlens_stack_push_float(camlens_stack* stack, double value) { stack->values.emplace_back(value); }

void camlens_stack_push_floats(camlens_stack* stack, const double* values, size_t count) {
  c10::List<double> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(values[i]);
  stack->values.emplace_back(std::move(list));
}

void camlens_stack_push_optional_numbers(camlens_stack* stack, const double* values, size_t count) {
  c10::List<std::optional<at::Scalar>> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(at::Scalar(values[i]));
  stack->values.emplace_back(std::move(list));
}

void camlens_stack_push_bool(camlens_stack* stack, bool value) { stack->values.emplace_back(value); }

void camlens_stack_push_bools(camlens_stack* stack, const bool* values, size_t count) {
  c10::List<bool> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(values[i]);
  stack->values.emplace_back(std::move(list));
}

void camlens_stack_push_wrapped_int(camlens_stack* stack, int64_t value) { stack->values.emplace_back(wrapped(value)); }

void camlens_stack_push_wrapped_float(camlens_stack* stack, double value) {
  stack->values.emplace_back(wrapped(value));
}

void camlens_stack_push_wrapped_bool(camlens_stack* stack, bool value) { stack->values.emplace_back(wrapped(value)); }

void camlens_stack_push_string(camlens_stack* stack, const char* text, size_t length) {
  stack->values.emplace_back(std::string(text, length));
}

void camlens_stack_push_device(camlens_stack* stack, int cuda_index) {
  stack->values.emplace_back(cuda_index < 0 ? c10::Device(c10::kCPU)
                                            : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(cuda_index)));
}

int camlens_stack_kind(const camlens_stack* stack, size_t index) {
  const c10::IValue& value = stack->values[index];
  if (value.isNone()) return CAMLENS_NONE;
  if (value.isTensor()) return CAMLENS_TENSOR;
  if (value.isTensorList() || value.isOptionalTensorList()) return CAMLENS_TENSORS;
  if (value.isInt() || (value.isSymInt() && !value.toSymInt().is_symbolic())) return CAMLENS_INT;
  if (value.isIntList()) return CAMLENS_INTS;
  if (value.isDouble()) return CAMLENS_FLOAT;
  if (value.isDoubleList()) return CAMLENS_FLOATS;
  if (value.isBool()) return CAMLENS_BOOL;
  if (value.isBoolList()) return CAMLENS_BOOLS;
  if (value.isString()) return CAMLENS_STRING;
  return CAMLENS_OTHER;
}

at::Tensor* camlens_stack_tensor(const camlens_stack* stack, size_t index) {
  return give(stack->values[index].toTensor());
}

size_t camlens_stack_length(const camlens_stack* stack, size_t index) {
  return stack->values[index].toListRef().size();
}

at::Tensor* camlens_stack_tensors_at(const camlens_stack* stack, size_t index, size_t element) {
  const c10::IValue& value = stack->values[index].toListRef()[element];
  return value.isNone() ? nullptr : give(value.toTensor());
}

int64_t camlens_stack_int(const camlens_stack* stack, size_t index) { return stack->values[index].toInt(); }

int64_t camlens_stack_ints_at(const camlens_stack* stack, size_t index, size_t element) {
  return stack->values[index].toListRef()[element].toInt();
}

double camlens_stack_float(const camlens_stack* stack, size_t index) { return stack->values[index].toDouble(); }

double camlens_stack_floats_at(const camlens_stack* stack, size_t index, size_t element) {
  return stack->values[index].toListRef()[element].toDouble();
}

bool camlens_stack_bool(const camlens_stack* stack, size_t index) { return stack->values[index].toBool(); }

bool camlens_stack_bools_at(const camlens_stack* stack, size_t index, size_t element) {
  return stack->values[index].toListRef()[element].toBool();
}

char* camlens_stack_string(const camlens_stack* stack, size_t index) {
  return camlens::copy_text(stack->values[index].toStringRef());
}

void camlens_tensor_view(const at::Tensor* tensor, camlens_view* view) {
  *view = {};
  if (!tensor->defined()) return;
  view->kind = static_cast<int>(tensor->scalar_type());
  view->element_bytes = static_cast<int64_t>(tensor->element_size());
  const bool has_storage = tensor->has_storage();
  view->storage = has_storage ? reinterpret_cast<uintptr_t>(tensor->storage().data()) : 0;
  view->offset = has_storage ? tensor->storage_offset() : 0;
  view->is_exclusive = tensor->use_count() == 1 && (!has_storage || tensor->storage().use_count() == 1);
  const bool is_strided = has_storage && tensor->layout() == at::kStrided && !tensor->is_nested();
  if (!is_strided) return;
  view->size = tensor->sizes().data();
  view->stride = tensor->strides().data();
  view->dimensions = static_cast<size_t>(tensor->dim());
  view->is_dense = tensor->is_non_overlapping_and_dense();
  view->is_contiguous = tensor->is_contiguous();
  view->is_channels_last = tensor->is_contiguous(at::MemoryFormat::ChannelsLast);
  view->is_on_cpu = tensor->is_cpu();
  if (view->is_on_cpu) view->data = tensor->const_data_ptr();
}

int camlens_cuda_options(bool allow_tf32, bool time_algorithms, char** error) {
  return guarded(error, [&]() -> int {
    at::Context& context = at::globalContext();
    context.setAllowTF32CuDNN(allow_tf32);
    context.setFloat32MatmulPrecision(allow_tf32 ? "high" : "highest");
    context.setBenchmarkCuDNN(time_algorithms);
    return CAMLENS_OK;
  });
}

int camlens_gradient(const at::Tensor* const* outputs, const at::Tensor* const* gradients, size_t output_count,
                     const at::Tensor* const* inputs, size_t input_count, at::Tensor** results, char** error) {
  for (size_t i = 0; i < input_count; ++i) results[i] = nullptr;
  return guarded(error, [&]() -> int {
    torch::autograd::variable_list scores, seeds, leaves;
    for (size_t i = 0; i < output_count; ++i) {
      if (gradients[i] == nullptr) continue;
      scores.push_back(*outputs[i]);
      seeds.push_back(*gradients[i]);
    }
    if (scores.empty()) return CAMLENS_OK;
    for (size_t i = 0; i < input_count; ++i) leaves.push_back(*inputs[i]);
    const auto found = torch::autograd::grad(scores, leaves, seeds, /*retain_graph=*/true, /*create_graph=*/false,
                                             /*allow_unused=*/true);
    for (size_t i = 0; i < input_count; ++i) results[i] = give(found[i]);
    return CAMLENS_OK;
  });
}
}
