// The numbers that kernels and their launches share.
#pragma once

namespace camlens::cuda {

// Threads of a block, but for the kernels of Grad-CAM.
constexpr int BLOCK = 256;

// Bytes that a thread loads or stores at once.
constexpr int PACK_BYTES = 16;

// Grad-CAM: a block computes CAM_TILE sums, each as blockDim.x / CAM_TILE partial sums. Its dynamic shared memory has a
// row of CAM_ROW floats for each of these: one more than the tile, against bank conflicts.
constexpr int CAM_TILE = 8;
constexpr int CAM_ROW = CAM_TILE + 1;
constexpr int CAM_LEAST_PARTS = 32;
constexpr int CAM_MOST_PARTS = 128;
constexpr int CAM_MOST_THREADS = CAM_TILE * CAM_MOST_PARTS;

// Pixels that a thread normalizes, the most channels of a picture, and the values of a byte.
constexpr int NORMALIZE_PIXELS = 4;
constexpr int NORMALIZE_CHANNELS = 4;
constexpr int BYTE_VALUES = 256;

}  // namespace camlens::cuda
