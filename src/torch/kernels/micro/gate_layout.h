// How gates and masks of zeros are stored: one bit per channel, the first channel in the lowest bit, in words of 64
// bits. Each pixel begins a new word.
#pragma once
#include <stdint.h>

namespace camlens {

// Channels per word. A sparse product works on one word's channels at a time: a segment.
constexpr int64_t MASK_BITS = 64;

}  // namespace camlens
