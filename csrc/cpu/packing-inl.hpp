// Samples of any dtype and strides, centred and packed into panels that the products read in order.
#pragma once

#include "halves-inl.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace slimfast::SLIMFAST_ISA {

// Samples per packed chunk: a panel of them stays in L1, and a product sum of this many terms is added up at
// a time.
constexpr i64 kChunkSamples = 128;

// The register tile: kRows x kPanel sums, where panels of kPanel variables are what is packed.
template <class T>
struct Tile {
    static constexpr int kVectors = kLanes<T> == 2 ? 2 : 3;
    static constexpr int kPanel = kVectors * kLanes<T>;
    static constexpr int kRows = SLIMFAST_REGISTERS == 32 ? 8 : 4;
    static_assert(kPanel % kRows == 0);
};

// What samples are centred in: the wider of the source's type and the result's.
template <class Source, class T>
struct Working {
    using type = T;
};
template <>
struct Working<double, float> {
    using type = double;
};

// bfloat16 is the upper half of a float32.
SLIMFAST_INLINE Vec<float> load_widened(const bf16_bits* from) {
    typedef std::uint16_t halves __attribute__((vector_size(SLIMFAST_VECTOR_BYTES / 2)));
    typedef std::uint32_t words __attribute__((vector_size(SLIMFAST_VECTOR_BYTES)));
    halves half;
    std::memcpy(&half, from, sizeof half);
    const words bits = __builtin_convertvector(half, words) << 16;
    Vec<float> values;
    std::memcpy(&values, &bits, sizeof values);
    return values;
}
template <class T>
SLIMFAST_INLINE Vec<T> load_widened(const T* from) {
    return load(from);
}

template <class A, class B>
inline constexpr bool kSame = false;
template <class A>
inline constexpr bool kSame<A, A> = true;
// Whether load_widened gives Vec<T>.
template <class Source, class T>
inline constexpr bool kLoadsVectors = kSame<Source, T> || (kSame<Source, bf16_bits> && kSame<T, float>);

// Lane l is from[l * stride] less its mean, of which there is one for all lanes or, `kEach`, one a lane.
template <class T, bool kEach, bool kRun, class Source, class W>
SLIMFAST_INLINE Vec<T> centred(const Source* from, i64 stride, const W* mean, const W* rest) {
    if constexpr (kRun && kLoadsVectors<Source, T>) {
        if constexpr (kEach) return load_widened(from) - load(mean) - load(rest);
        return load_widened(from) - splat(*mean) - splat(*rest);
    } else {
        T values[kLanes<T>];
        for (int l = 0; l < kLanes<T>; ++l) {
            const W value = static_cast<W>(widened(from[kRun ? l : l * stride]));
            values[l] = static_cast<T>(value - mean[kEach ? l : 0] - rest[kEach ? l : 0]);
        }
        return load(values);
    }
}

// The chunk of samples that is packed: x[variable * variable_stride + sample * sample_stride] from `corner`
// on, with the means of `count` variables (by_rows) or of `samples` samples. Panels have room for `spacing`
// samples.
template <class Source, class W>
struct Chunk {
    const Source* corner;
    i64 variable_stride, sample_stride;
    i64 count, samples, spacing;
    const W* mean;
    const W* rest;
};

// Variables that are neighbours in memory: a sample is a run of them. A few samples at a time, so that what
// is read and what is written are both runs.
template <class Source, class T, bool kByRows, class W>
void pack_runs(const Chunk<Source, W>& x, T* packed) {
    constexpr i64 panel = Tile<T>::kPanel, v = kLanes<T>, together = 8;
    for (i64 k0 = 0; k0 < x.samples; k0 += together) {
        const i64 last = smaller(k0 + together, x.samples);
        for (i64 p = 0; p < x.count; p += panel) {
            T* to = packed + p * x.spacing + k0 * panel;
            for (i64 k = k0; k < last; ++k, to += panel) {
                const Source* from = x.corner + k * x.sample_stride + p;
                const W* mean = x.mean + (kByRows ? p : k);
                const W* rest = x.rest + (kByRows ? p : k);
                if (p + panel <= x.count) {
                    for (i64 r = 0; r < panel; r += v) {
                        const i64 at = kByRows ? r : 0;
                        store(to + r, centred<T, kByRows, true>(from + r, 1, mean + at, rest + at));
                    }
                } else {
                    for (i64 r = 0; r < panel; ++r) {
                        const i64 at = kByRows ? r : 0;
                        to[r] = p + r < x.count
                                    ? static_cast<T>(static_cast<W>(widened(from[r])) - mean[at] - rest[at])
                                    : T{0};
                    }
                }
            }
        }
    }
}

// The kLanes<T> variables from r0 on, at any distance: squares of kLanes x kLanes are transposed in
// registers. `kWhole`: all of them are there and their samples are runs.
template <class Source, class T, bool kByRows, bool kWhole, class W>
void pack_lanes(const Chunk<Source, W>& x, i64 r0, T* to) {
    constexpr i64 panel = Tile<T>::kPanel, v = kLanes<T>;
    const Source* from = x.corner + r0 * x.variable_stride;
    const i64 here = kWhole ? v : larger<i64>(smaller(v, x.count - r0), 0);
    const i64 sample_stride = kWhole ? 1 : x.sample_stride;
    i64 k = 0;
    for (; k + v <= x.samples; k += v) {
        Vec<T> square[v] = {};
        for (i64 r = 0; r < (kWhole ? v : here); ++r) {
            const i64 at = kByRows ? r0 + r : k;
            square[r] = centred<T, !kByRows, kWhole>(from + r * x.variable_stride + k * sample_stride,
                                                     sample_stride, x.mean + at, x.rest + at);
        }
        transpose<T>(square);
        for (i64 c = 0; c < v; ++c) store(to + (k + c) * panel, square[c]);
    }
    for (; k < x.samples; ++k) {
        for (i64 r = 0; r < v; ++r) {
            const i64 at = kByRows ? r0 + r : k;
            const i64 place = r * x.variable_stride + k * sample_stride;
            to[k * panel + r] =
                r < here ? static_cast<T>(static_cast<W>(widened(from[place])) - x.mean[at] - x.rest[at])
                         : T{0};
        }
    }
}

template <class Source, class T, bool kByRows, class W>
void pack_squares(const Chunk<Source, W>& x, T* packed) {
    constexpr i64 panel = Tile<T>::kPanel, v = kLanes<T>;
    for (i64 r0 = 0; r0 < round_up(x.count, panel); r0 += v) {
        // Rows lie far apart, so the machine does not see the next ones coming.
        for (i64 r = r0 + v; x.sample_stride == 1 && r < smaller(r0 + 2 * v, x.count); ++r) {
            const Source* ahead = x.corner + r * x.variable_stride;
            for (i64 k = 0; k < x.samples; k += 64 / sizeof(Source)) __builtin_prefetch(ahead + k, 0, 2);
        }
        T* to = packed + r0 / panel * panel * x.spacing + r0 % panel;
        x.sample_stride == 1 && r0 + v <= x.count ? pack_lanes<Source, T, kByRows, true>(x, r0, to)
                                                  : pack_lanes<Source, T, kByRows, false>(x, r0, to);
    }
}

// What is packed: the variables are the rows of x (by_rows) or its columns, and the mean of every row over
// the columns is mean[i] + rest[i], which is taken out.
struct Centred {
    MatrixView x;
    bool by_rows;
    const double* mean;
    const double* rest;
};

// Packs `count` variables from `first` on, `samples` samples each, into panels [variable
// panel][sample][variable] with room for `spacing` samples; variables beyond `count` are zero.
template <class Source, class T>
void pack(const Centred& from, i64 first, i64 count, i64 first_sample, i64 samples, i64 spacing, T* packed) {
    using W = typename Working<Source, T>::type;
    // Variables whose means are at hand in the working type.
    constexpr i64 slice = 8 * Tile<T>::kPanel;
    constexpr i64 room = slice > kChunkSamples ? slice : kChunkSamples;
    const MatrixView& x = from.x;
    const i64 variable_stride = from.by_rows ? x.row_stride : x.col_stride;
    const i64 sample_stride = from.by_rows ? x.col_stride : x.row_stride;
    W mean[room], rest[room];
    for (i64 at = first; at < first + count; at += slice, packed += slice * spacing) {
        const i64 here = smaller(slice, first + count - at);
        const i64 means = from.by_rows ? at : first_sample;
        for (i64 i = 0; i < (from.by_rows ? here : samples); ++i) {
            mean[i] = static_cast<W>(from.mean[means + i]);
            rest[i] = static_cast<W>(from.rest[means + i]);
        }
        const Source* corner =
            static_cast<const Source*>(x.data) + at * variable_stride + first_sample * sample_stride;
        const Chunk<Source, W> chunk{corner,  variable_stride, sample_stride, here,
                                     samples, spacing,         mean,          rest};
        if (variable_stride == 1) {
            from.by_rows ? pack_runs<Source, T, true>(chunk, packed)
                         : pack_runs<Source, T, false>(chunk, packed);
        } else {
            from.by_rows ? pack_squares<Source, T, true>(chunk, packed)
                         : pack_squares<Source, T, false>(chunk, packed);
        }
    }
}

}  // namespace slimfast::SLIMFAST_ISA
