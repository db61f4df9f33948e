// How a convolution moves over its input: over its height, then over its width.
#pragma once
#include <cstdint>

struct CamlensMoves {
  int64_t stride[2], padding[2], dilation[2];
};
