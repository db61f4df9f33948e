#include "operators.h"

#include "device.h"
#include "graphs.h"
#include "host.h"
#include "pinned.h"
#include "report.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include <set>
#include <unordered_map>
#include <utility>

namespace fake {
namespace {

using torch::jit::Stack;

const c10::DispatchKeySet CUDA_KEYS(c10::DispatchKey::CUDA);

bool is_fake(const at::Tensor& tensor) { return tensor.defined() && tensor.is_cuda(); }

char* data_of(const at::Tensor& tensor) { return static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())); }

// ---- the arguments of an operator ----

// They take indices on the CPU, and wait until these are on the device.
const std::set<std::string> INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
                                        "aten::_unsafe_index"};

// Whether CUDA's kernel reads of an argument the size alone.
bool is_read_for_size(const c10::FunctionSchema& schema, const Stack& stack, size_t first, size_t at) {
  static const std::set<std::string> POOLS = {"aten::max_pool2d_with_indices_backward", "aten::avg_pool2d_backward",
                                              "aten::_adaptive_avg_pool2d_backward"};
  const std::string& name = schema.arguments()[at].name();
  if (name == "self") return POOLS.count(schema.name()) > 0;
  if (name != "input" || schema.name() != "aten::convolution_backward") return false;
  // The gradient of the weight, the second of three, is made from the input.
  return !stack[first + static_cast<size_t>(*schema.argumentIndexWithName("output_mask"))].toBoolList()[1];
}

// The tensors of one call as the CPU's kernels see them.
class Arguments {
 public:
  enum class For { VIEW, CALL, LAUNCHES };

  // Replaces the arguments, the last of the stack, with tensors over the same bytes.
  Arguments(const c10::FunctionSchema& schema, Stack& stack, For what) : what_(what) {
    const auto& arguments = schema.arguments();
    const size_t first = stack.size() - arguments.size();
    for (size_t at = 0; at < arguments.size(); ++at) {
      const auto* const alias = arguments[at].alias_info();
      c10::IValue& value = stack[first + at];
      is_used_ = what == For::CALL;
      if (value.isTensor() && is_fake(value.toTensor()) && is_read_for_size(schema, stack, first, at)) {
        // The CPU's kernel may read it, and does nothing with what it has read.
        const at::Tensor& tensor = value.toTensor();
        if (!device_) device_ = tensor.get_device();
        const auto on_host = at::detail::empty_strided_cpu(tensor.sizes(), tensor.strides(), tensor.scalar_type());
        value = on_host.zero_();
      } else {
        replace(value, alias != nullptr && alias->isWrite());
      }
    }
    TORCH_CHECK(!is_mixed() || INDEXING.count(schema.name()) > 0,
                "Expected all tensors to be on the same device: ", schema.name(),
                " got tensors on cuda and on the CPU");
  }

  // Whether there are tensors of the CPU, other than numbers, beside those of a device.
  bool is_mixed() const { return has_foreign_ && !pairs_.empty(); }
  int device() const { return device_ ? *device_ : current_device(); }
  std::vector<Use> uses() const { return uses_; }

  // The tensor that the caller sees for one that the CPU's kernel has returned: an argument, a view of one, or null if
  // it is new.
  at::Tensor known(const at::Tensor& result) const {
    for (const Pair& pair : pairs_)
      if (pair.view.is_same(result)) return pair.original;
    const auto storage = originals_.find(result.storage().unsafeGetStorageImpl());
    if (storage == originals_.end()) return at::Tensor();
    at::Tensor view =
        at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage->second), CUDA_KEYS, result.dtype());
    view.unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
    return view;
  }

  // Calls `move(view, original)` for arguments whose size the kernel has changed.
  template <typename Move>
  void for_each_resized(const Move& move) const {
    for (const auto& [view, original, is_written] : pairs_)
      if (is_written && (view.sizes() != original.sizes() || view.strides() != original.strides()))
        move(view, original);
  }

 private:
  struct Pair {
    at::Tensor view, original;
    bool is_written;
  };

  void replace(c10::IValue& value, bool is_written) {
    if (value.isTensor()) {
      value = replaced(value.toTensor(), is_written);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(replaced(tensor, is_written));
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional<at::Tensor>(replaced(*tensor, is_written)) : tensor);
      value = std::move(list);
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      const c10::Device device = value.toDevice();
      if (!device_) device_ = device.has_index() ? device.index() : current_device();
      value = c10::Device(c10::kCPU);
    }
  }

  at::Tensor replaced(const at::Tensor& tensor, bool is_written) {
    if (!is_fake(tensor)) {
      has_foreign_ = has_foreign_ || (tensor.defined() && tensor.dim() > 0);
      // A launch has the number that the capture had.
      return tensor.defined() && what_ == For::LAUNCHES ? tensor.detach().clone() : tensor;
    }
    if (!device_) device_ = tensor.get_device();
    at::Tensor view;
    if (is_written && tensor.storage().nbytes() == 0) {
      // The kernel gives it its size.
      view = at::empty({0}, at::TensorOptions(at::kCPU).dtype(tensor.dtype()));
    } else {
      view = view_of(tensor);
      const auto known = views_.emplace(tensor.storage().unsafeGetStorageImpl(), view.storage());
      if (!known.second) view.unsafeGetTensorImpl()->set_storage_keep_dtype(known.first->second);
      originals_.emplace(view.storage().unsafeGetStorageImpl(), tensor.storage());
      const auto use = is_used_ ? use_of(tensor, is_written) : std::nullopt;
      if (use) uses_.push_back(*use);
    }
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) view.unsafeGetTensorImpl()->set_wrapped_number(true);
    pairs_.push_back({view, tensor, is_written});
    return view;
  }

  For what_;
  // Whether the argument at hand is memory that the operator reads or writes.
  bool is_used_ = false;
  bool has_foreign_ = false;
  std::optional<int> device_;
  std::vector<Pair> pairs_;
  std::vector<Use> uses_;
  // By storages: tensors that share one share a view.
  std::unordered_map<c10::StorageImpl*, c10::Storage> views_, originals_;
};

// ---- operators ----

struct Operator {
  const std::string* name;
  // Returns its arguments' memory, seen in another way.
  bool is_view;
  // Returns to the host what only the device knows.
  bool waits;
  // Multiplies float32 in another precision, if that is allowed.
  bool multiplies;
};

// The shape of their results depends on data.
const std::set<std::string> WAITING = {
    "aten::nonzero",           "aten::masked_select",         "aten::_unique",  "aten::_unique2",
    "aten::unique_dim",        "aten::unique_consecutive",    "aten::bincount", "aten::nonzero_static",
    "aten::repeat_interleave", "aten::unique_dim_consecutive"};
const std::set<std::string> MULTIPLYING = {"aten::convolution",
                                           "aten::convolution_backward",
                                           "aten::cudnn_convolution_relu",
                                           "aten::cudnn_convolution_add_relu",
                                           "aten::mm",
                                           "aten::addmm",
                                           "aten::bmm",
                                           "aten::baddbmm"};

Operator operator_of(const c10::FunctionSchema& schema) {
  const auto sees = [](const c10::Argument& argument) {
    return argument.alias_info() != nullptr && !argument.alias_info()->isWrite();
  };
  const auto is_for_host = [](const c10::Argument& result) {
    const auto kind = result.type()->kind();
    return kind != c10::TypeKind::TensorType && kind != c10::TypeKind::ListType;
  };
  const auto any = [](const std::vector<c10::Argument>& all, const auto& is) {
    for (const c10::Argument& one : all)
      if (is(one)) return true;
    return false;
  };
  const bool waits = any(schema.returns(), is_for_host) || WAITING.count(schema.name()) > 0;
  return {interned(schema.name()), any(schema.arguments(), sees), waits, MULTIPLYING.count(schema.name()) > 0};
}

void check_precision(const Operator& op, const Stack& stack) {
  if (!op.multiplies || settings().allows_tf32) return;
  bool is_float = false;
  for (const c10::IValue& value : stack)
    is_float = is_float || (value.isTensor() && is_fake(value.toTensor()) && value.toTensor().dtype() == at::kFloat);
  const bool is_convolution = op.name->find("conv") != std::string::npos;
  const auto kind = is_convolution ? at::Float32Op::CONV : at::Float32Op::MATMUL;
  const auto precision = at::globalContext().float32Precision(at::Float32Backend::CUDA, kind);
  if (is_float && precision == at::Float32Precision::TF32) record_violation(*op.name + ": TF32 is allowed for float32");
}

// The tensors among results, in their order.
template <typename See>
void for_each_tensor(Stack& results, const See& see) {
  for (c10::IValue& value : results) {
    if (value.isTensor()) {
      value = see(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(see(tensor));
      value = std::move(list);
    }
  }
}

// The bytes of a tensor of the CPU, in new memory of the device.
at::Tensor moved(const at::Tensor& result, int device, Running& running) {
  const c10::DeviceGuard guard(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)));
  const at::Tensor dense = result.is_non_overlapping_and_dense() ? result : result.contiguous();
  at::Tensor to = at::detail::empty_strided_generic(dense.sizes(), dense.strides(), &device_allocator(), CUDA_KEYS,
                                                    dense.scalar_type());
  if (const auto use = use_of(to, true)) {
    running.add_result(*use);
    view_of(to).copy_(dense);
  }
  return to;
}

// Computes, on the CPU: takes arguments from the stack, and leaves results there.
using Compute = std::function<void(Stack& stack)>;

// What a launch does: the arguments lie where they lay, and so do the results.
Body again(Compute compute, Stack arguments, std::vector<at::Tensor> results) {
  return [compute = std::move(compute), arguments = std::move(arguments), results = std::move(results)](const Stream&,
                                                                                                        uint64_t) {
    const c10::impl::ExcludeDispatchKeyGuard no_gradient(c10::autograd_dispatch_keyset);
    Stack stack = arguments;
    compute(stack);
    size_t at = 0;
    for_each_tensor(stack, [&](const at::Tensor& result) {
      const at::Tensor& to = results[at++];
      if (to.defined()) to.copy_(result);
      return result;
    });
  };
}

void call(const c10::FunctionSchema& schema, Stack& stack, const Compute& compute) {
  const Operator op = operator_of(schema);
  check_precision(op, stack);
  const size_t count = schema.arguments().size();
  const Stack originals(stack.end() - static_cast<std::ptrdiff_t>(count), stack.end());
  const Arguments arguments(schema, stack, op.is_view ? Arguments::For::VIEW : Arguments::For::CALL);
  if (op.is_view) {
    compute(stack);
    Stack results(stack.end() - static_cast<std::ptrdiff_t>(schema.returns().size()), stack.end());
    for_each_tensor(results, [&](const at::Tensor& result) { return arguments.known(result); });
    std::copy(results.begin(), results.end(), stack.end() - static_cast<std::ptrdiff_t>(results.size()));
    return;
  }
  const int device = arguments.device();
  Stream& stream = current_stream(device);
  const bool waits = op.waits || arguments.is_mixed();
  if (waits) refuse_in_capture(*op.name + ", which waits for the device", &stream);
  {
    const Kind kind = *op.name == "aten::_local_scalar_dense" ? Kind::COPY_TO_HOST : Kind::KERNEL;
    Running running(stream, op.name, kind, arguments.uses());
    compute(stack);
    arguments.for_each_resized([&](const at::Tensor& view, const at::Tensor& original) {
      auto* const tensor = original.unsafeGetTensorImpl();
      tensor->set_storage_keep_dtype(moved(view, device, running).storage());
      tensor->set_sizes_and_strides(view.sizes(), view.strides(), 0);
    });
    Stack results(stack.end() - static_cast<std::ptrdiff_t>(schema.returns().size()), stack.end());
    std::vector<at::Tensor> fresh;
    for_each_tensor(results, [&](const at::Tensor& result) {
      at::Tensor known = result.defined() ? arguments.known(result) : result;
      const bool is_new = result.defined() && !known.defined();
      if (is_new) known = moved(result, device, running);
      fresh.push_back(is_new && known.numel() > 0 ? view_of(known) : at::Tensor());
      return known;
    });
    std::copy(results.begin(), results.end(), stack.end() - static_cast<std::ptrdiff_t>(results.size()));
    if (running.is_captured()) {
      Stack views = originals;
      const Arguments same(schema, views, Arguments::For::LAUNCHES);
      running.keep(again(compute, std::move(views), std::move(fresh)));
    }
  }
  if (waits) synchronize(stream);
}

// Any operator, by the CPU's kernel.
void any_operator(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  call(op.schema(), *stack,
       [op](Stack& arguments) { op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &arguments); });
}

// ---- cuDNN's own operators: their schemas are in libtorch_cpu, their kernels are not ----

at::Tensor convolved(const Stack& arguments, size_t bias) {
  const auto at = [&](size_t argument) -> const c10::IValue& { return arguments[argument]; };
  return at::convolution(at(0).toTensor(), at(1).toTensor(), at(bias).toOptional<at::Tensor>(),
                         at(bias + 1).toIntVector(), at(bias + 2).toIntVector(), at(bias + 3).toIntVector(), false,
                         {0, 0}, at(bias + 4).toInt());
}

// self, weight, bias, stride, padding, dilation, groups
void convolution_relu(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  call(op.schema(), *stack, [](Stack& arguments) {
    const at::Tensor result = convolved(arguments, 2).relu_();
    arguments = {result};
  });
}

// self, weight, z, alpha, bias, stride, padding, dilation, groups
void convolution_add_relu(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  call(op.schema(), *stack, [](Stack& arguments) {
    const auto alpha = arguments[3].toOptional<at::Scalar>().value_or(1);
    const at::Tensor result = convolved(arguments, 4).add_(arguments[2].toTensor(), alpha).relu_();
    arguments = {result};
  });
}

// ---- memory and copies ----

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
                 std::optional<c10::Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic(size, &device_allocator(), CUDA_KEYS, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                         std::optional<c10::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_generic(size, stride, &device_allocator(), CUDA_KEYS, c10::dtype_or_default(type));
}

void queue(Stream& stream, const char* what, Kind kind, std::vector<Use> uses, const Body& body) {
  Running running(stream, interned(what), kind, std::move(uses));
  body(running.stream(), running.step());
  if (running.is_captured()) running.keep(body);
}

std::vector<Use> uses_of(const at::Tensor& read, const at::Tensor& written) {
  std::vector<Use> uses;
  if (const auto use = use_of(read, false)) uses.push_back(*use);
  if (const auto use = use_of(written, true)) uses.push_back(*use);
  return uses;
}

bool has_same_layout(const at::Tensor& one, const at::Tensor& other) {
  return one.dtype() == other.dtype() && one.strides() == other.strides() && one.is_non_overlapping_and_dense();
}

void copy_on_device(const at::Tensor& to, const at::Tensor& from) {
  Stream& stream = current_stream(from.get_device());
  Stream& other = current_stream(to.get_device());
  Event ready, done;
  const bool is_between = &stream != &other;
  if (is_between) {
    record(ready, other);
    block(ready, stream);
  }
  queue(stream, "aten::copy_", Kind::KERNEL, uses_of(from, to),
        [to_view = view_of(to), from_view = view_of(from)](const Stream&, uint64_t) { to_view.copy_(from_view); });
  if (is_between) {
    record(done, stream);
    block(done, other);
  }
}

// As libtorch does it: page-locked memory is copied while the host goes on, unless it must be rearranged on the host.
void copy_to_device(const at::Tensor& to, const at::Tensor& from, bool is_non_blocking) {
  Stream& stream = current_stream(to.get_device());
  std::vector<Use> uses = uses_of(from, to);
  const bool is_pinned = uses.size() == 2;
  const bool is_late = is_non_blocking && is_pinned && (from.is_contiguous() || has_same_layout(from, to));
  if (!is_late) refuse_in_capture("a copy to the device that blocks, or of memory that is not page-locked", &stream);
  const Use read = uses.front();
  queue(stream, "aten::copy_ to the device", Kind::COPY_TO_DEVICE, std::move(uses),
        [to_view = view_of(to), from_view = is_pinned ? view_of(from) : from, is_late, read](const Stream& on,
                                                                                             uint64_t step) {
          to_view.copy_(from_view);
          if (!is_late || step == 0) return;
          const std::lock_guard<std::mutex> hold(state_lock());
          add_copy(read.block, {on.index, step, read.begin, read.end, false, {}, false});
        });
  if (!is_non_blocking) synchronize(stream);
}

void copy_to_host(const at::Tensor& to, const at::Tensor& from, bool is_non_blocking) {
  Stream& stream = current_stream(from.get_device());
  std::vector<Use> uses = uses_of(from, to);
  const bool is_pinned = uses.size() == 2;
  const bool is_late = is_non_blocking && is_pinned && (to.is_contiguous() || has_same_layout(from, to));
  if (!is_late) refuse_in_capture("a copy to the host that blocks, or to memory that is not page-locked", &stream);
  const Use written = uses.back();
  queue(stream, "aten::copy_ to the host", Kind::COPY_TO_HOST, std::move(uses),
        [to_view = is_pinned ? view_of(to) : to, from_view = view_of(from), is_late, written](const Stream& on,
                                                                                              uint64_t step) {
          if (!is_late) {
            to_view.copy_(from_view);
          } else if (step > 0) {
            std::vector<char> bytes(written.end - written.begin);
            at::from_blob(bytes.data(), to_view.sizes(), to_view.strides(), to_view.options()).copy_(from_view);
            const std::lock_guard<std::mutex> hold(state_lock());
            add_copy(written.block, {on.index, step, written.begin, written.end, true, std::move(bytes), false});
          }
        });
  if (!is_late) synchronize(stream);
}

at::Tensor& copy(at::Tensor& self, const at::Tensor& source, bool is_non_blocking) {
  if (self.is_same(source) || self.numel() == 0) return self;
  const at::Tensor from = source.expand_as(self);
  if (is_fake(self) && is_fake(from)) {
    copy_on_device(self, from);
  } else if (is_fake(self)) {
    copy_to_device(self, from, is_non_blocking);
  } else {
    copy_to_host(self, from, is_non_blocking);
  }
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  return const_cast<at::Tensor&>(to.resize_(from.sizes())).copy_(from);
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat> format) {
  const at::Tensor fresh = at::empty(size, self.options(), format);
  c10::StorageImpl* const storage = self.storage().unsafeGetStorageImpl();
  c10::StorageImpl* const larger = fresh.storage().unsafeGetStorageImpl();
  if (larger->nbytes() > storage->nbytes()) {
    if (storage->nbytes() > 0) device_allocator().copy_data(larger->mutable_data(), storage->data(), storage->nbytes());
    storage->set_data_ptr(std::move(larger->mutable_data_ptr()));
    storage->set_nbytes(larger->nbytes());
  }
  self.unsafeGetTensorImpl()->set_sizes_and_strides(fresh.sizes(), fresh.strides());
  return self;
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  if (self.numel() > 0) keep_for(self.storage().data(), stream_of(stream));
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&any_operator>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("copy_", copy);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("resize_", resize);
  library.impl("record_stream", record_stream);
  library.impl("cudnn_convolution_relu", torch::CppFunction::makeFromBoxedFunction<&convolution_relu>());
  library.impl("cudnn_convolution_add_relu", torch::CppFunction::makeFromBoxedFunction<&convolution_add_relu>());
  // Composite ones that would look for a kernel of this device deep inside.
  for (const char* const name : {"convolution", "convolution_backward", "native_layer_norm", "native_group_norm"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&any_operator>());
}

}  // namespace

at::Tensor view_of(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  c10::Storage bytes(c10::Storage::use_byte_size_t(), storage.nbytes(),
                     c10::DataPtr(const_cast<void*>(storage.data()), c10::Device(c10::kCPU)),
                     c10::GetAllocator(c10::kCPU), false);
  at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(
      std::move(bytes), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return view;
}

std::optional<Use> use_of(const at::Tensor& tensor, bool is_write) {
  if (!tensor.defined() || tensor.numel() == 0) return std::nullopt;
  const char* const begin = data_of(tensor);
  if (!is_fake(tensor)) {
    const std::lock_guard<std::mutex> hold(state_lock());
    if (pinned_at(begin) == nullptr) return std::nullopt;
  }
  size_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim)
    last += static_cast<size_t>((tensor.size(dim) - 1) * tensor.stride(dim));
  return use_of(begin, begin + (last + 1) * tensor.itemsize(), is_write);
}

}  // namespace fake
