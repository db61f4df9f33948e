#include "device.h"

#include "graphs.h"
#include "host.h"
#include "memory.h"
#include "pinned.h"
#include "report.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>

namespace fake {
namespace {

void release_locked(void* data) {
  const std::lock_guard<std::mutex> hold(state_lock());
  release(data);
}

void unpin_locked(void* data) {
  const std::lock_guard<std::mutex> hold(state_lock());
  unpin(data);
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const int device = current_device();
    const c10::Device place(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
    check_devices();
    if (bytes == 0) return {nullptr, nullptr, &release_locked, place};
    const Stream& stream = current_stream(device);
    const std::lock_guard<std::mutex> hold(state_lock());
    const uint64_t pool = stream.capture == nullptr ? 0 : stream.capture->pool();
    const bool may_wait = stream.capture == nullptr && own_capture() == nullptr;
    void* const data = fake::allocate(bytes, device, stream.index, pool, may_wait);
    return {data, data, &release_locked, place};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release_locked; }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    const auto end = [bytes](const void* begin) { return static_cast<const char*>(begin) + bytes; };
    Running running(current_stream(current_device()), interned("a copy of memory"), Kind::KERNEL,
                    {use_of(from, end(from), false), use_of(to, end(to), true)});
    const auto copy = [to, from, bytes](const Stream&, uint64_t) { std::memcpy(to, from, bytes); };
    copy(running.stream(), running.step());
    if (running.is_captured()) running.keep(copy);
  }
};

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const std::lock_guard<std::mutex> hold(state_lock());
    void* const data = pin(bytes);
    return {data, data, &unpin_locked, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin_locked; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

const c10::AllocatorRegisterer<c10::kCUDA> registered_allocator(&device_allocator());

int index_of(c10::Device device) { return device.has_index() ? device.index() : current_device(); }

c10::Stream as_torch(const Stream& stream) {
  const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(stream.device));
  return c10::Stream(c10::Stream::UNSAFE, device, stream.id);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device to) const override {
    const c10::Device last = getDevice();
    setDevice(to);
    return last;
  }
  c10::Device getDevice() const override { return {c10::kCUDA, static_cast<c10::DeviceIndex>(current_device())}; }
  void setDevice(c10::Device to) const override { set_device(index_of(to)); }
  void uncheckedSetDevice(c10::Device to) const noexcept override { set_device(index_of(to)); }
  c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(settings().devices); }
  c10::DeviceCapability getDeviceCapability(c10::Device) const override { return {}; }
  void synchronizeDevice(const c10::DeviceIndex device) const override { synchronize_device(device); }

  c10::Stream getStream(c10::Device device) const override { return as_torch(current_stream(index_of(device))); }
  c10::Stream getDefaultStream(c10::Device device) const override { return as_torch(default_stream(index_of(device))); }
  c10::Stream getNewStream(c10::Device device, int) const override { return as_torch(new_stream(index_of(device))); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return as_torch(enter(stream_of(stream))); }
  bool queryStream(const c10::Stream& stream) const override { return query(stream_of(stream)); }
  void synchronizeStream(const c10::Stream& stream) const override { synchronize(stream_of(stream)); }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    if (data) keep_for(data.get(), stream_of(stream));
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag flag) const override {
    if (*event == nullptr) *event = new Event(flag == c10::EventFlag::BACKEND_DEFAULT);
    fake::record(*static_cast<Event*>(*event), stream_of(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event != nullptr) fake::block(*static_cast<Event*>(event), stream_of(stream));
  }
  bool queryEvent(void* event) const override { return event == nullptr || query(*static_cast<Event*>(event)); }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) synchronize(*static_cast<Event*>(event));
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  double elapsedTime(void* begin, void* end, const c10::DeviceIndex) const override {
    return elapsed(*static_cast<Event*>(begin), *static_cast<Event*>(end));
  }
};

// Leaked, as libtorch wants it.
const c10::impl::DeviceGuardImplRegistrar registered_guard(c10::kCUDA, new Guard);

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return settings().devices > 0; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return hasCUDA(); }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return settings().devices; }
  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(settings().devices); }
  c10::DeviceIndex current_device() const override { return getCurrentDevice(); }
  c10::DeviceIndex getCurrentDevice() const override { return static_cast<c10::DeviceIndex>(fake::current_device()); }
  void setCurrentDevice(c10::DeviceIndex device) const override { set_device(device); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    const c10::DeviceIndex last = getCurrentDevice();
    set_device(device);
    return last;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return device < 0 ? getCurrentDevice() : exchangeDevice(device);
  }
  void deviceSynchronize(c10::DeviceIndex device) const override { synchronize_device(device); }
  std::string showConfig() const override { return "fake CUDA device"; }
  // at::manual_seed asks every device; these draw their random numbers as the CPU does.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator& generator = *new at::Generator(at::detail::createCPUGenerator());
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &device_allocator(); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator(); }
  bool isPinnedPtr(const void* data) const override {
    const std::lock_guard<std::mutex> hold(state_lock());
    return pinned_at(data) != nullptr;
  }
  c10::Device getDeviceFromPtr(void* data) const override {
    const std::lock_guard<std::mutex> hold(state_lock());
    const BlockPointer block = block_at(data);
    TORCH_CHECK(block != nullptr && block->device >= 0, "CUDA error: the pointer is none to a device's memory");
    return {c10::kCUDA, static_cast<c10::DeviceIndex>(block->device)};
  }
};

// REGISTER_CUDA_HOOKS wants the class to be at::CUDAHooks.
const c10::Registerer<std::string, std::unique_ptr<at::CUDAHooksInterface>, at::CUDAHooksArgs> registered_hooks(
    "CUDAHooks", at::CUDAHooksRegistry(),
    [](at::CUDAHooksArgs args) -> std::unique_ptr<at::CUDAHooksInterface> { return std::make_unique<Hooks>(args); });

}  // namespace

c10::Allocator& device_allocator() {
  static DeviceAllocator& allocator = *new DeviceAllocator;
  return allocator;
}

c10::Allocator& pinned_allocator() {
  static PinnedAllocator& allocator = *new PinnedAllocator;
  return allocator;
}

Stream& stream_of(const c10::Stream& stream) { return stream_of(index_of(stream.device()), stream.id()); }

void keep_for(const void* data, const Stream& stream) {
  const std::lock_guard<std::mutex> hold(state_lock());
  const BlockPointer block = block_at(data);
  TORCH_CHECK(block != nullptr, "CUDA error: invalid argument: not memory of the fake device");
  block->users.insert(stream.index);
}

}  // namespace fake
