// Rows of the output copied by threads, the next ones asked for ahead.
#include "gather.hpp"

#include <algorithm>
#include <cstring>

#include "../common/check.hpp"
#include "parallel.hpp"

namespace slimfast {
namespace {

// Output bytes of one work item: small enough to share out, large enough to hide the sharing.
constexpr i64 kItemBytes = 256 << 10;

struct Item {
    i64 task, first, last;
};

template <int kBytes>
inline void move_bytes(char* to, const char* from) {
    std::memcpy(to, from, kBytes);
}

// memcpy for short runs of any length: whole chunks, then one that overlaps them and ends where the run ends.
inline void copy_run(char* to, const char* from, i64 bytes) {
    if (bytes >= 512) {
        std::memcpy(to, from, bytes);
    } else if (bytes >= 32) {
        for (i64 at = 0; at + 32 <= bytes; at += 32) move_bytes<32>(to + at, from + at);
        move_bytes<32>(to + bytes - 32, from + bytes - 32);
    } else if (bytes >= 16) {
        move_bytes<16>(to, from);
        move_bytes<16>(to + bytes - 16, from + bytes - 16);
    } else if (bytes >= 8) {
        move_bytes<8>(to, from);
        move_bytes<8>(to + bytes - 8, from + bytes - 8);
    } else if (bytes >= 4) {
        move_bytes<4>(to, from);
        move_bytes<4>(to + bytes - 4, from + bytes - 4);
    } else {
        for (i64 at = 0; at < bytes; ++at) to[at] = from[at];
    }
}

template <class Element>
void copy_elements(char* to, const char* from, const GatherDim& dim) {
    Element* out = reinterpret_cast<Element*>(to);
    const Element* in = reinterpret_cast<const Element*>(from);
    if (dim.index) {
        for (i64 i = 0; i < dim.size; ++i) out[i] = in[dim.index[i] * dim.stride];
    } else {
        for (i64 i = 0; i < dim.size; ++i) out[i] = in[i * dim.stride];
    }
}

i64 position(const GatherDim& dim, i64 i) { return (dim.index ? dim.index[i] : i) * dim.stride; }

// Fewest dims that say the same, at least two.
void simplify(GatherTask& task) {
    auto [offset, dims] = simplified(task.dims);
    task.data += offset * task.element_bytes;
    const bool runs = !dims.empty() && !dims.back().index && dims.back().stride == 1;
    // A last dim that is no run of elements gets a run of one where it would otherwise stand alone.
    while (dims.size() < 2)
        dims.insert(runs || !dims.empty() ? dims.begin() : dims.end(), GatherDim{1, 1, nullptr});
    task.dims = std::move(dims);
}

i64 rows_of(const GatherTask& task) {
    i64 rows = 1;
    for (std::size_t i = 0; i + 1 < task.dims.size(); ++i) rows *= task.dims[i].size;
    return rows;
}

// Where the dims before the last two are for this output row, in elements.
i64 outer_offset(const std::vector<GatherDim>& dims, i64 row) {
    i64 rest = row / dims[dims.size() - 2].size;
    i64 offset = 0;
    for (std::size_t i = dims.size() - 2; i-- > 0;) {
        offset += position(dims[i], rest % dims[i].size);
        rest /= dims[i].size;
    }
    return offset;
}

void prefetch(const char* from, i64 bytes) {
    for (i64 at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
}

// Kept rows lie far apart, so the machine does not see the next ones coming: the beginning of the row so many
// further on, and of the first row at the next position of the outer dims, are asked for ahead.
constexpr i64 kRowsAhead = 4;
constexpr i64 kBytesAhead = 1024;

// Rows first..last - 1 of the output, a row being its last dim.
void copy_rows(const GatherTask& task, i64 first, i64 last) {
    const std::vector<GatherDim>& dims = task.dims;
    const GatherDim& inner = dims.back();
    const GatherDim& middle = dims[dims.size() - 2];
    const i64 row_bytes = inner.size * task.element_bytes;
    // Elements far from each other are lines of their own, too many to ask for; short rows share theirs.
    const bool near = inner.stride == 1;
    const i64 span = position(inner, inner.size - 1) * task.element_bytes;
    const bool ask = near && span >= 128;
    char* to = task.out + first * row_bytes;
    while (first < last) {
        // The position of the dims before the last two, then a tight loop over the middle one.
        const char* base = task.data + outer_offset(dims, first) * task.element_bytes;
        const i64 start = first % middle.size;
        const i64 stop = std::min(middle.size, start + last - first);
        first += stop - start;
        if (near && dims.size() > 2 && first < last) {
            const i64 next = outer_offset(dims, first) + position(middle, 0);
            prefetch(task.data + next * task.element_bytes, kBytesAhead);
        }
        for (i64 row = start; row < stop; ++row, to += row_bytes) {
            const char* from = base + position(middle, row) * task.element_bytes;
            if (ask && row + kRowsAhead < stop) {
                prefetch(base + position(middle, row + kRowsAhead) * task.element_bytes,
                         std::min(span, kBytesAhead));
            }
            if (!inner.index && inner.stride == 1) {
                copy_run(to, from, row_bytes);
                continue;
            }
            switch (task.element_bytes) {
                case 1:
                    copy_elements<std::uint8_t>(to, from, inner);
                    break;
                case 2:
                    copy_elements<std::uint16_t>(to, from, inner);
                    break;
                case 4:
                    copy_elements<std::uint32_t>(to, from, inner);
                    break;
                default:
                    copy_elements<std::uint64_t>(to, from, inner);
            }
        }
    }
}

}  // namespace

void gather(std::vector<GatherTask> tasks, int threads) {
    std::vector<Item> items;
    for (i64 i = 0; i < static_cast<i64>(tasks.size()); ++i) {
        GatherTask& task = tasks[i];
        const i64 bytes = task.element_bytes;
        require(bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8,
                "gather: expected elements of 1, 2, 4 or 8 bytes, got ", bytes, " (tensor ", i, ")");
        bool empty = false;
        for (const GatherDim& dim : task.dims) empty = empty || dim.size == 0;
        if (empty) continue;
        simplify(task);
        const i64 rows = rows_of(task);
        const i64 step = std::max<i64>(kItemBytes / (task.dims.back().size * bytes), 1);
        for (i64 row = 0; row < rows; row += step) items.push_back({i, row, std::min(row + step, rows)});
    }
    parallel_for(items.size(), threads, [&](i64 at, int) {
        const Item& item = items[at];
        copy_rows(tasks[item.task], item.first, item.last);
    });
}

}  // namespace slimfast
