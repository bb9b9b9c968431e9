// The patches of a convolution, formed a few positions at a time.
#pragma once

#include "../common/dtypes.hpp"

namespace slimfast {

// One of up to three spatial dims of an input: its size and stride in memory, and how the kernel walks it. A
// dim that is not there has one position.
struct PatchDim {
    i64 size, stride, kernel, step, padding, dilation, outputs;
};

// What one group of a convolution reads of (samples, channels, dims ...).
struct Patches {
    const void* data;
    i64 element_bytes;
    i64 samples, sample_stride, channel_stride;
    PatchDim dims[3];

    i64 taps() const { return dims[0].kernel * dims[1].kernel * dims[2].kernel; }
    i64 positions() const { return samples * dims[0].outputs * dims[1].outputs * dims[2].outputs; }
};

// out[(v - first) * count + i]: variable v = channel * taps + tap of position first_position + i, for
// variables first..last - 1; zero where the patch is beyond the input.
void form_patches(const Patches& patches, i64 first, i64 last, i64 first_position, i64 count, void* out);

}  // namespace slimfast
