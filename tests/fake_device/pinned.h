// Page-locked memory of the host, which devices copy from and to while the host goes on.
//
// A copy to the host shows its bytes, and a copy to a device gives its bytes back, when the host has waited for it:
// until then the pages are closed, to the host's reads and writes, or to its writes.
//
// Everything here wants the lock of host.h held.
#pragma once
#include "memory.h"

#include <string>

namespace fake {

void* pin(size_t bytes);
// The memory stays as long as there are copies.
void unpin(void* data);

// The page-locked block to which an address belongs; null if there is none.
BlockPointer pinned_at(const void* address);

// The copy is queued. `bytes` of a copy to the host is what arrives.
void add_copy(const BlockPointer& block, PendingCopy copy);

// A device's work reads or writes the block: what was copied there arrives, for the device's eyes.
void arrive(Block& block);

// Ends the copies that the host has waited for. Throws if the host has meanwhile written to what one of them copied.
void end_copies();

}  // namespace fake
