// Patches row by row: along the last dim a tap reads a run of the input.
#include "patches.hpp"

#include <algorithm>
#include <cstdint>

namespace slimfast {
namespace {

// Where a tap reads along a dim at output position `at`; outside 0..size - 1 there are zeros.
i64 place(const PatchDim& dim, i64 tap, i64 at) { return at * dim.step + tap * dim.dilation - dim.padding; }

// Positions first..first + count - 1 of a row of outputs, which `row` points to (null: all are zeros).
template <class Element>
void form_run(const PatchDim& dim, i64 tap, const Element* row, i64 first, i64 count, Element* out) {
    if (!row) {
        std::fill(out, out + count, Element{0});
        return;
    }
    // The positions that read inside the input.
    const i64 shift = dim.padding - tap * dim.dilation;
    const i64 begin = std::clamp(shift > 0 ? (shift + dim.step - 1) / dim.step - first : 0, i64{0}, count);
    const i64 limit = dim.size + shift;
    const i64 end = std::clamp(limit > 0 ? (limit + dim.step - 1) / dim.step - first : 0, begin, count);
    std::fill(out, out + begin, Element{0});
    const Element* from = row + place(dim, tap, first + begin) * dim.stride;
    const i64 step = dim.step * dim.stride;
    if (step == 1) {
        std::copy(from, from + (end - begin), out + begin);
    } else {
        for (i64 i = begin; i < end; ++i, from += step) out[i] = *from;
    }
    std::fill(out + end, out + count, Element{0});
}

template <class Element>
void form(const Patches& patches, i64 first, i64 last, i64 first_position, i64 count, Element* out) {
    const PatchDim &outer = patches.dims[0], &middle = patches.dims[1], &inner = patches.dims[2];
    for (i64 v = first; v < last; ++v, out += count) {
        const i64 channel = v / patches.taps(), tap = v % patches.taps();
        const i64 outer_tap = tap / (middle.kernel * inner.kernel),
                  middle_tap = tap / inner.kernel % middle.kernel;
        const Element* data = static_cast<const Element*>(patches.data) + channel * patches.channel_stride;
        for (i64 done = 0; done < count;) {
            const i64 at = first_position + done, row = at / inner.outputs;
            const i64 x = at % inner.outputs, here = std::min(inner.outputs - x, count - done);
            const i64 z = place(outer, outer_tap, row / middle.outputs % outer.outputs);
            const i64 y = place(middle, middle_tap, row % middle.outputs);
            const bool inside = z >= 0 && z < outer.size && y >= 0 && y < middle.size;
            const i64 sample = row / middle.outputs / outer.outputs;
            const Element* from =
                inside ? data + sample * patches.sample_stride + z * outer.stride + y * middle.stride
                       : nullptr;
            form_run(inner, tap % inner.kernel, from, x, here, out + done);
            done += here;
        }
    }
}

}  // namespace

void form_patches(const Patches& patches, i64 first, i64 last, i64 first_position, i64 count, void* out) {
    switch (patches.element_bytes) {
        case 2:
            return form(patches, first, last, first_position, count, static_cast<std::uint16_t*>(out));
        case 4:
            return form(patches, first, last, first_position, count, static_cast<std::uint32_t*>(out));
        default:
            return form(patches, first, last, first_position, count, static_cast<std::uint64_t*>(out));
    }
}

}  // namespace slimfast
