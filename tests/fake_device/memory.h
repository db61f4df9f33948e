// The memory of the fake devices: pages of the host that nobody may touch but for the time that an operator runs. It
// is handed out as libtorch's caching allocator does: what a tensor leaves goes back to the stream on which it was
// made, and is used again there at once.
//
// Everything here wants the lock of host.h held.
#pragma once
#include "history.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

namespace fake {

// A copy between page-locked memory and a device that the host has not waited for.
struct PendingCopy {
  size_t stream;
  uint64_t step;
  // The bytes on the host.
  uintptr_t begin, end;
  bool is_to_host;
  // To the host: what arrives. To the device: what must still be there, where no page protects it.
  std::vector<char> bytes;
  bool has_arrived;
};

// One tensor's memory, now or earlier, and behind it a page that stays closed.
struct Block {
  // The pages, without the closed one.
  char* map;
  size_t room;
  // The bytes of the tensor, at the end of the pages.
  char* data;
  size_t bytes;
  // -1: page-locked memory of the host.
  int device;
  // The stream on which it was first handed out, and the pool of the graphs that it belongs to, 0 if to none.
  size_t stream;
  uint64_t pool;
  bool is_allocated;
  // How many operators run that touch it.
  int open;
  // Each tenant has another number, which rises with time. `contents`: that of the tenant whose bytes are there, 0 if
  // nothing has been written.
  uint64_t generation;
  uint64_t contents;
  History history;
  // Other streams that use it, and what must be over before it is free.
  std::set<size_t> users;
  Clock busy;
  // Of page-locked memory.
  std::vector<PendingCopy> copies;
};

using BlockPointer = std::shared_ptr<Block>;

struct Usage {
  uint64_t allocated, reserved, peak;
  // Of what is reserved; 0: none.
  uint64_t limit;
};

Usage& usage(int device);
// Of the device's memory, what nobody has.
uint64_t free_bytes(int device);
// The number of the next tenant.
uint64_t next_generation();

// Throws c10::OutOfMemoryError. `may_wait` is false during a capture: then nothing is given back to the device.
void* allocate(size_t bytes, int device, size_t stream, uint64_t pool, bool may_wait);
void release(void* data);
// Gives what no tensor uses back to the device.
void trim(int device);
// Its memory becomes that of no pool.
void close_pool(uint64_t pool);

// The block, in use, to which an address belongs; null if there is none.
BlockPointer block_at(const void* address);

// The host may touch what is open. Each `open` wants a `close`.
void open(Block& block);
void close(Block& block);

// What pinned.cpp is made of: a block of the host, whose pages are closed as its copies want.
BlockPointer map_block(size_t bytes);
void unmap_block(const BlockPointer& block);
void protect(const Block& block);
// Whether pages keep the host from the copy's bytes, all of them.
bool is_protected(const Block& block, const PendingCopy& copy);

}  // namespace fake
