#include "memory.h"

#include "host.h"
#include "report.h"

#include <c10/util/Exception.h>

#include <csignal>
#include <cstring>
#include <map>
#include <tuple>

#include <sys/mman.h>
#include <unistd.h>

namespace fake {
namespace {

// Tensors begin at multiples of this.
constexpr size_t ALIGNMENT = 64;
// The unit in which libtorch's allocator counts, in bytes.
constexpr size_t UNIT = 512;
// As a float of any size, NaN; as an integer, -1.
constexpr int POISON = 0xff;

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t page() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t room_for(size_t bytes) { return rounded(std::max(bytes, size_t{1}), page()); }

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Device, pool, stream, room.
using Shelf = std::tuple<int, uint64_t, size_t, size_t>;

struct Memory {
  std::map<uintptr_t, BlockPointer> by_map;
  std::map<Shelf, std::vector<BlockPointer>> free;
  // No tensor has them, but other streams do.
  std::vector<BlockPointer> busy;
  std::vector<Usage> usage;
  uint64_t generation = 0;
};

Memory& memory() {
  static Memory& all = *new Memory;
  return all;
}

void set_protection(const Block& block, int protection) {
  TORCH_CHECK(mprotect(block.map, block.room, protection) == 0, "mprotect failed");
}

void put_away(const BlockPointer& block) {
  memory().free[{block->device, block->pool, block->stream, block->room}].push_back(block);
}

void unmap_device_block(const BlockPointer& block) {
  usage(block->device).reserved -= block->room;
  unmap_block(block);
}

// Frees what other streams were busy with and is over.
void collect(const Clock& over) {
  auto& busy = memory().busy;
  for (size_t at = 0; at < busy.size();) {
    if (!over.covers(busy[at]->busy)) {
      ++at;
      continue;
    }
    put_away(busy[at]);
    busy.erase(busy.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

// The smallest block on the shelves of the stream and the pool that is neither too small nor much too large.
BlockPointer take(size_t room, int device, size_t stream, uint64_t pool) {
  auto& free = memory().free;
  const auto shelf = free.lower_bound({device, pool, stream, room});
  if (shelf == free.end() || shelf->first > Shelf{device, pool, stream, 2 * room}) return nullptr;
  const BlockPointer block = shelf->second.back();
  shelf->second.pop_back();
  if (shelf->second.empty()) free.erase(shelf);
  return block;
}

bool fits(int device, size_t room) { return room <= free_bytes(device); }

[[noreturn]] void out_of_memory(size_t bytes, int device) {
  TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes, " bytes. GPU ", device,
                   " has a total capacity of ", settings().memory.load(), " bytes of which ", free_bytes(device),
                   " bytes are free. ", usage(device).allocated, " bytes are allocated by PyTorch, ",
                   usage(device).reserved, " bytes are reserved.");
}

// ---- what the process says when the host touches closed memory
struct sigaction previous;

void say(const char* text) { static_cast<void>(!write(STDERR_FILENO, text, std::strlen(text))); }

void explain_fault(int, siginfo_t* info, void*) {
  // The instruction runs again, and meets the action that was there before.
  sigaction(SIGSEGV, &previous, nullptr);
  const std::unique_lock<std::mutex> hold(state_lock(), std::try_to_lock);
  if (!hold) return;
  const auto& blocks = memory().by_map;
  auto after = blocks.upper_bound(address(info->si_addr));
  if (after == blocks.begin()) return;
  const Block& block = *(--after)->second;
  if (address(info->si_addr) >= address(block.map) + block.room + page()) return;
  if (address(info->si_addr) >= address(block.map) + block.room) {
    say("fake CUDA device: something touches memory past the end of a tensor\n");
  } else if (block.device >= 0) {
    say("fake CUDA device: the host touches a device's memory\n");
  } else {
    say("fake CUDA device: the host touches page-locked memory before it has waited for the copy\n");
  }
}

const bool is_explaining = [] {
  struct sigaction action = {};
  action.sa_sigaction = explain_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  return sigaction(SIGSEGV, &action, &previous) == 0;
}();

}  // namespace

Usage& usage(int device) {
  auto& all = memory().usage;
  if (all.size() <= static_cast<size_t>(device)) all.resize(static_cast<size_t>(device) + 1);
  return all[static_cast<size_t>(device)];
}

uint64_t free_bytes(int device) {
  const Usage& now = usage(device);
  const uint64_t memory_bytes = settings().memory;
  const uint64_t most = now.limit == 0 ? memory_bytes : std::min(memory_bytes, now.limit);
  return most > now.reserved ? most - now.reserved : 0;
}

uint64_t next_generation() { return memory().generation + 1; }

BlockPointer map_block(size_t bytes) {
  const size_t room = room_for(bytes);
  void* const map = mmap(nullptr, room + page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK_WITH(OutOfMemoryError, map != MAP_FAILED, "mmap of ", room, " bytes failed");
  const auto block = std::make_shared<Block>();
  block->map = static_cast<char*>(map);
  block->room = room;
  block->data = block->map + (room - rounded(bytes, ALIGNMENT));
  block->bytes = bytes;
  block->device = -1;
  block->is_allocated = true;
  block->generation = ++memory().generation;
  set_protection(*block, PROT_READ | PROT_WRITE);
  std::memset(block->map, POISON, room);
  memory().by_map[address(map)] = block;
  return block;
}

void unmap_block(const BlockPointer& block) {
  block->is_allocated = false;
  munmap(block->map, block->room + page());
  memory().by_map.erase(address(block->map));
}

void* allocate(size_t bytes, int device, size_t stream, uint64_t pool, bool may_wait) {
  const size_t room = room_for(bytes);
  const uint64_t number = ++counters().allocations;
  if (number == settings().fail_allocation) out_of_memory(bytes, device);
  collect(host_clock());
  BlockPointer block = take(room, device, stream, pool);
  if (block == nullptr) {
    if (!fits(device, room) && may_wait) trim(device);
    if (!fits(device, room)) out_of_memory(bytes, device);
    block = map_block(bytes);
    block->device = device;
    block->stream = stream;
    block->pool = pool;
    protect(*block);
    usage(device).reserved += room;
  }
  block->data = block->map + (block->room - rounded(bytes, ALIGNMENT));
  block->bytes = bytes;
  block->is_allocated = true;
  block->generation = ++memory().generation;
  block->contents = 0;
  block->users.clear();
  Usage& now = usage(device);
  now.allocated += rounded(bytes, UNIT);
  now.peak = std::max(now.peak, now.allocated);
  counters().allocated_bytes += rounded(bytes, UNIT);
  counters().peak_bytes = std::max<uint64_t>(counters().peak_bytes, now.peak);
  counters().peak_reserved_bytes = std::max<uint64_t>(counters().peak_reserved_bytes, now.reserved);
  return block->data;
}

void release(void* data) {
  const BlockPointer block = block_at(data);
  counters().allocated_bytes -= rounded(block->bytes, UNIT);
  usage(block->device).allocated -= rounded(block->bytes, UNIT);
  block->is_allocated = false;
  if (settings().is_poisoning) {
    open(*block);
    std::memset(block->map, POISON, block->room);
    close(*block);
  }
  block->busy = Clock();
  for (const size_t user : block->users)
    if (user != block->stream) block->busy.raise(user, queued_clock().of(user));
  if (host_clock().covers(block->busy)) {
    put_away(block);
  } else {
    memory().busy.push_back(block);
  }
}

void trim(int device) {
  // As libtorch does, it waits for what other streams are busy with.
  for (const BlockPointer& block : memory().busy)
    if (block->device == device) host_clock().join(block->busy);
  collect(host_clock());
  auto& free = memory().free;
  for (auto shelf = free.begin(); shelf != free.end();) {
    const auto& [of_device, pool, stream, room] = shelf->first;
    if (of_device != device || pool != 0) {
      ++shelf;
      continue;
    }
    for (const BlockPointer& block : shelf->second) unmap_device_block(block);
    shelf = free.erase(shelf);
  }
}

void close_pool(uint64_t pool) {
  std::vector<BlockPointer> unused;
  auto& free = memory().free;
  for (auto shelf = free.begin(); shelf != free.end();) {
    if (std::get<1>(shelf->first) == pool) {
      unused.insert(unused.end(), shelf->second.begin(), shelf->second.end());
      shelf = free.erase(shelf);
    } else {
      ++shelf;
    }
  }
  for (const auto& [map, block] : memory().by_map)
    if (block->pool == pool) block->pool = 0;
  for (const BlockPointer& block : unused) put_away(block);
}

BlockPointer block_at(const void* pointer) {
  auto& blocks = memory().by_map;
  auto after = blocks.upper_bound(address(pointer));
  if (after == blocks.begin()) return nullptr;
  const BlockPointer& block = (--after)->second;
  const bool is_inside = pointer >= block->data && pointer < block->data + std::max(block->bytes, size_t{1});
  return is_inside && block->is_allocated ? block : nullptr;
}

void open(Block& block) {
  if (block.open++ == 0) set_protection(block, PROT_READ | PROT_WRITE);
}

void close(Block& block) {
  if (--block.open == 0) protect(block);
}

bool is_protected(const Block& block, const PendingCopy& copy) {
  const uintptr_t data = address(block.data);
  return (copy.begin <= data || copy.begin % page() == 0) && (copy.end >= data + block.bytes || copy.end % page() == 0);
}

void protect(const Block& block) {
  if (block.device >= 0) return set_protection(block, PROT_NONE);
  set_protection(block, PROT_READ | PROT_WRITE);
  const uintptr_t map = address(block.map), data = address(block.data);
  // What arrives last: it may be in the range of a copy to the device.
  for (const bool is_to_host : {false, true}) {
    for (const PendingCopy& copy : block.copies) {
      if (copy.is_to_host != is_to_host) continue;
      // Only whole pages can be closed; what shares a page with nothing else of the block has it for itself.
      const uintptr_t begin = copy.begin <= data ? map : rounded(copy.begin, page());
      const uintptr_t end = copy.end >= data + block.bytes ? map + block.room : copy.end / page() * page();
      if (begin >= end) continue;
      const int protection = is_to_host ? PROT_NONE : PROT_READ;
      TORCH_CHECK(mprotect(reinterpret_cast<void*>(begin), end - begin, protection) == 0, "mprotect failed");
    }
  }
}

}  // namespace fake
