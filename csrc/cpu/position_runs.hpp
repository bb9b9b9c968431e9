// The positions of a layer as runs in memory, cut into the parts that are centred together.
#pragma once

#include <vector>

#include "moments.hpp"

namespace slimfast {

// Runs `first_run`.. of `run_count`, which hold `samples` positions; of patches the first position itself.
struct PositionPart {
    i64 first_run, run_count, samples;
};

struct Positions {
    PositionSteps steps;
    std::vector<PositionRun> runs;
    std::vector<PositionPart> parts;
    i64 count;
};

// The positions that count, in parts of `part_samples` and what is left.
Positions positions_of(const MomentLayer& layer, i64 part_samples);

// The positions of patches, which have no runs in memory, in such parts.
Positions positions_of_patches(const Patches& patches, i64 part_samples);

}  // namespace slimfast
