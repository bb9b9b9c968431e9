// How tensors are cut into tiles of rows and columns: numbers alone, on the host.
#include <algorithm>
#include <array>
#include <utility>

#include "../common/check.hpp"
#include "gather.hpp"

namespace slimfast::cuda {
namespace {

constexpr int kDims = 5;
// A last dim with fewer units than this shares the columns with the one before it.
constexpr i64 kShortRow = 128;

// `place` is where the indices are in the table, counted from the first of all.
struct Dim : GatherDim {
    i64 place;
};

struct View {
    std::uintptr_t source;
    i64 unit_bytes;
    std::vector<Dim> dims;
};

View view_of(const GatherTensor& tensor, const std::vector<GatherIndices>& indices,
             const std::vector<i64>& places) {
    std::vector<Dim> dims;
    for (const KeptDim& dim : tensor.dims) {
        const bool whole = dim.kept < 0;
        dims.push_back({{dim.size, dim.stride, whole ? nullptr : indices[dim.kept].first},
                        whole ? 0 : places[dim.kept]});
    }
    SimplifiedDims<Dim> simple = simplified(dims);
    return {tensor.source + simple.offset * tensor.element_bytes, tensor.element_bytes,
            std::move(simple.dims)};
}

// Counts in the widest unit at whose multiples every run of the last dim starts and ends.
void widen(View& view, std::uintptr_t target) {
    if (view.dims.empty() || view.dims.back().index || view.dims.back().stride != 1) return;
    Dim& run = view.dims.back();
    const auto fits = [&](i64 factor) {
        const auto bytes = static_cast<std::uintptr_t>(factor * view.unit_bytes);
        return run.size % factor == 0 && view.source % bytes == 0 && target % bytes == 0 &&
               std::all_of(view.dims.begin(), view.dims.end() - 1,
                           [factor](const Dim& dim) { return dim.stride % factor == 0; });
    };
    i64 factor = 16 / view.unit_bytes;
    while (!fits(factor)) factor /= 2;
    for (Dim& dim : view.dims) dim.stride /= factor;
    run.stride = 1;
    run.size /= factor;
    view.unit_bytes *= factor;
}

// n / d as a multiplier and a shift, for n below 2^31: see divide in gather.cu.
i64 divisor(i64 d) {
    i64 shift = 0;
    while (i64{1} << shift < d) ++shift;
    return (shift << 32) + ((((i64{1} << shift) - d) << 32) / d + 1);
}

using Fields = std::array<i64, kGatherFields>;

struct Entries {
    std::vector<Fields> fields;
    std::vector<i64> tiles;
};

// Adds the entry of one view with `target` as its result, or of its halves.
void add(Entries& entries, const View& view, std::uintptr_t target) {
    // Room for what a tile counts beyond the end.
    constexpr i64 most = (i64{1} << 31) - (1 << 16);
    const Dim whole{{1, 0, nullptr}, 0};
    std::vector<Dim> dims = view.dims;
    if (dims.empty()) dims.push_back(whole);
    if (dims.size() < kDims && dims.back().size >= kShortRow) dims.insert(dims.end() - 1, whole);
    dims.insert(dims.begin(), kDims - dims.size(), whole);
    const i64 rows = dims[0].size * dims[1].size * dims[2].size;
    const i64 columns = dims[3].size * dims[4].size;
    if (rows > most || columns > most) {
        View half = view;
        // Dims before it have one position, so its halves follow each other in the result too.
        const auto at =
            std::find_if(view.dims.begin(), view.dims.end(), [](const Dim& d) { return d.size > 1; });
        Dim& split = half.dims[at - view.dims.begin()];
        split.size /= 2;
        add(entries, half, target);
        target += static_cast<std::uintptr_t>(rows * columns / at->size * split.size * view.unit_bytes);
        if (split.index) {
            split.index += split.size;
            split.place += split.size;
        } else {
            half.source += static_cast<std::uintptr_t>(split.size * split.stride * view.unit_bytes);
        }
        split.size = at->size - split.size;
        return add(entries, half, target);
    }
    i64 lanes = 1;
    while (lanes < std::min<i64>(columns, kGatherThreads)) lanes *= 2;
    // The narrower the units, the more rows, so that most tiles have 16 to 32 KiB.
    const i64 rows_of_thread =
        std::clamp<i64>(16 / view.unit_bytes, kGatherRowsInFlight, kGatherMostRowsOfThread);
    const i64 across = lanes * kGatherColumnsPerThread;
    const i64 down = kGatherThreads / lanes * rows_of_thread;
    Fields fields;
    fields[kGatherSource] = static_cast<i64>(view.source);
    fields[kGatherTarget] = static_cast<i64>(target);
    fields[kGatherUnitBytes] = view.unit_bytes;
    fields[kGatherRows] = rows;
    fields[kGatherColumns] = columns;
    fields[kGatherLanes] = lanes;
    fields[kGatherRowsOfThread] = rows_of_thread;
    fields[kGatherTilesAcross] = ceil_div(columns, across);
    for (int i = 0; i < kDims; ++i) {
        fields[kGatherSizes + i] = dims[i].size;
        fields[kGatherStrides + i] = dims[i].stride;
        fields[kGatherIndices + i] = dims[i].index ? dims[i].place : -1;
    }
    const int divided[] = {1, 2, 4};
    for (int i = 0; i < 3; ++i)
        fields[kGatherDivisors + i] = divisor(std::max<i64>(dims[divided[i]].size, 1));
    entries.fields.push_back(fields);
    entries.tiles.push_back(ceil_div(rows, down) * fields[kGatherTilesAcross]);
}

}  // namespace

GatherTable gather_table(const std::vector<GatherTensor>& tensors,
                         const std::vector<GatherIndices>& indices) {
    // Counted from the first index until the number of entries is known.
    std::vector<i64> places{0};
    for (const GatherIndices& kept : indices) places.push_back(places.back() + kept.count);
    Entries entries;
    for (const GatherTensor& tensor : tensors) {
        View view = view_of(tensor, indices, places);
        widen(view, tensor.target);
        require(view.dims.size() <= kDims, "gather: expected at most 5 dims after merging, got ",
                view.dims.size());
        add(entries, view, tensor.target);
    }
    const auto count = static_cast<i64>(entries.fields.size());
    const i64 first_index = count + 1 + count * kGatherFields;
    GatherTable table{{0}, static_cast<int>(count), 0};
    table.numbers.reserve(static_cast<std::size_t>(first_index + places.back()));
    for (const i64 tiles : entries.tiles) table.numbers.push_back(table.tiles += tiles);
    for (Fields& fields : entries.fields) {
        for (int i = 0; i < kDims; ++i) {
            i64& place = fields[kGatherIndices + i];
            if (place >= 0) place += first_index;
        }
        table.numbers.insert(table.numbers.end(), fields.begin(), fields.end());
    }
    for (const GatherIndices& kept : indices)
        table.numbers.insert(table.numbers.end(), kept.first, kept.first + kept.count);
    return table;
}

}  // namespace slimfast::cuda
