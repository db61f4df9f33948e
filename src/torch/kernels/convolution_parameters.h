// How a convolution or a pooling window moves over its input: along the height, then along the width.
#pragma once
#include <cstdint>

namespace camlens {

struct ConvolutionParameters {
  int64_t stride[2], padding[2], dilation[2];
};

}  // namespace camlens
