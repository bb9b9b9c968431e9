// Where the reduction of a large symmetric matrix to a band keeps its lower triangle.
//
// It lies in panels of kBand columns: panel j holds rows j kBand .. n - 1, row after row, kBand entries each.
// n is the matrix's size rounded up to a multiple of kBand; rows beyond the matrix are zero and stay so.
#pragma once

#include "integers.hpp"

namespace slimfast {

inline constexpr int kBand = 32;

// Where row j kBand of panel j starts.
SLIMFAST_COMMON constexpr i64 panel_start(i64 n, i64 panel) {
    return kBand * (n * panel - kBand * (panel * (panel - 1) / 2));
}

// Elements of all panels.
SLIMFAST_COMMON constexpr i64 panel_elements(i64 n) { return panel_start(n, n / kBand); }

}  // namespace slimfast
