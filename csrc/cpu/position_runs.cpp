// Dims of positions, made few and long, and the runs of those that count.
#include "position_runs.hpp"

#include <algorithm>
#include <cstdlib>

namespace slimfast {
namespace {

// The order of positions does not matter as long as both operands have the same: the dim with the smallest
// steps comes last, and dims that follow each other in memory become one.
std::vector<PositionDim> simplified_dims(const MomentLayer& layer) {
    std::vector<PositionDim> sorted;
    for (const PositionDim& dim : layer.dims) {
        if (dim.size != 1) sorted.push_back(dim);
    }
    std::stable_sort(sorted.begin(), sorted.end(), [](const PositionDim& a, const PositionDim& b) {
        return std::abs(a.x_stride) > std::abs(b.x_stride);
    });
    std::vector<PositionDim> dims;
    for (const PositionDim& dim : sorted) {
        PositionDim* before = dims.empty() ? nullptr : &dims.back();
        if (before && before->x_stride == dim.size * dim.x_stride &&
            before->y_stride == dim.size * dim.y_stride &&
            before->mask_stride == dim.size * dim.mask_stride) {
            *before = {before->size * dim.size, dim.x_stride, dim.y_stride, dim.mask_stride};
        } else {
            dims.push_back(dim);
        }
    }
    if (dims.empty()) dims.push_back({1, 0, 0, 0});
    return dims;
}

// Takes runs in one after another and cuts them where a part is full.
struct PartBuilder {
    Positions& positions;
    const i64 part_samples;

    void add(PositionRun run) {
        const PositionSteps& steps = positions.steps;
        while (run.samples > 0) {
            if (positions.parts.empty() || positions.parts.back().samples == part_samples) {
                positions.parts.push_back({static_cast<i64>(positions.runs.size()), 0, 0});
            }
            PositionPart& part = positions.parts.back();
            const i64 here = std::min(run.samples, part_samples - part.samples);
            positions.runs.push_back({run.x, run.y, here});
            positions.count += here;
            part.run_count += 1;
            part.samples += here;
            run = {run.x + here * steps.x, run.y + here * steps.y, run.samples - here};
        }
    }

    // The runs of a row of `size` positions of which only those count that the mask has.
    void add_masked(i64 x, i64 y, const PositionDim& dim, const unsigned char* mask) {
        for (i64 first = 0; first < dim.size;) {
            i64 last = first;
            while (last < dim.size && mask[last * dim.mask_stride]) ++last;
            if (last > first) add({x + first * dim.x_stride, y + first * dim.y_stride, last - first});
            for (first = last; first < dim.size && !mask[first * dim.mask_stride];) ++first;
        }
    }
};

}  // namespace

Positions positions_of(const MomentLayer& layer, i64 part_samples) {
    const std::vector<PositionDim> dims = simplified_dims(layer);
    Positions positions{};
    if (std::any_of(dims.begin(), dims.end(), [](const PositionDim& dim) { return dim.size == 0; })) {
        return positions;
    }
    const PositionDim inner = dims.back();
    positions.steps = {inner.x_stride, inner.y_stride};
    PartBuilder builder{positions, part_samples};
    std::vector<i64> index(dims.size() - 1, 0);
    for (bool more = true; more;) {
        i64 x = 0, y = 0, in_mask = 0;
        for (std::size_t d = 0; d < index.size(); ++d) {
            x += index[d] * dims[d].x_stride;
            y += index[d] * dims[d].y_stride;
            in_mask += index[d] * dims[d].mask_stride;
        }
        if (layer.mask) {
            builder.add_masked(x, y, inner, layer.mask + in_mask);
        } else {
            builder.add({x, y, inner.size});
        }
        more = false;
        for (std::size_t d = index.size(); d-- > 0 && !more;) {
            more = ++index[d] < dims[d].size;
            if (!more) index[d] = 0;
        }
    }
    return positions;
}

Positions positions_of_patches(const Patches& patches, i64 part_samples) {
    Positions positions{};
    positions.count = patches.positions();
    for (i64 first = 0; first < positions.count; first += part_samples) {
        positions.parts.push_back({first, 0, std::min(part_samples, positions.count - first)});
    }
    return positions;
}

}  // namespace slimfast
