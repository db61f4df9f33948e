// The fake devices as libtorch sees them: what it allocates with, and what it asks about devices, streams and events.
#pragma once
#include "streams.h"

#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

namespace fake {

// Of device memory, on the current stream of the current device.
c10::Allocator& device_allocator();
c10::Allocator& pinned_allocator();

Stream& stream_of(const c10::Stream& stream);

// The memory is not reused before what is queued on the stream when it is freed is over.
void keep_for(const void* data, const Stream& stream);

}  // namespace fake
