#include "pinned.h"

#include "host.h"
#include "report.h"

#include <algorithm>
#include <cstring>

namespace fake {
namespace {

// Blocks with copies.
std::vector<BlockPointer>& waiting() {
  static std::vector<BlockPointer>& all = *new std::vector<BlockPointer>;
  return all;
}

void show(PendingCopy& copy) {
  if (!copy.is_to_host || copy.has_arrived) return;
  std::memcpy(reinterpret_cast<void*>(copy.begin), copy.bytes.data(), copy.bytes.size());
  copy.has_arrived = true;
}

bool is_changed(const PendingCopy& copy) {
  return !copy.is_to_host && !copy.bytes.empty() &&
         std::memcmp(reinterpret_cast<const void*>(copy.begin), copy.bytes.data(), copy.bytes.size()) != 0;
}

}  // namespace

void* pin(size_t bytes) {
  const BlockPointer block = map_block(std::max(bytes, size_t{1}));
  // The host may write it at any time.
  block->contents = block->generation;
  return block->data;
}

void unpin(void* data) {
  const BlockPointer block = block_at(data);
  block->is_allocated = false;
  if (block->copies.empty()) unmap_block(block);
}

BlockPointer pinned_at(const void* address) {
  const BlockPointer block = block_at(address);
  return block != nullptr && block->device < 0 ? block : nullptr;
}

void add_copy(const BlockPointer& block, PendingCopy copy) {
  open(*block);
  const auto* const begin = reinterpret_cast<const char*>(copy.begin);
  if (copy.is_to_host) {
    std::memset(reinterpret_cast<void*>(copy.begin), 0xff, copy.end - copy.begin);
  } else if (!is_protected(*block, copy)) {
    copy.bytes.assign(begin, begin + (copy.end - copy.begin));
  }
  if (block->copies.empty()) waiting().push_back(block);
  block->copies.push_back(std::move(copy));
  close(*block);
}

void arrive(Block& block) {
  open(block);
  for (PendingCopy& copy : block.copies) show(copy);
  close(block);
}

void end_copies() {
  bool is_broken = false;
  for (const BlockPointer& block : std::vector<BlockPointer>(waiting())) {
    auto& copies = block->copies;
    const auto is_over = [](const PendingCopy& copy) { return host_clock().covers(copy.stream, copy.step); };
    if (std::none_of(copies.begin(), copies.end(), is_over)) continue;
    open(*block);
    for (PendingCopy& copy : copies) {
      if (!is_over(copy)) continue;
      show(copy);
      is_broken = is_broken || is_changed(copy);
    }
    copies.erase(std::remove_if(copies.begin(), copies.end(), is_over), copies.end());
    close(*block);
    if (!copies.empty()) continue;
    waiting().erase(std::find(waiting().begin(), waiting().end(), block));
    if (!block->is_allocated) unmap_block(block);
  }
  if (is_broken)
    violation("the host has written to page-locked memory before it had waited for the copy to the device");
}

}  // namespace fake
