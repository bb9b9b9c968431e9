// Sums in two parts, so that many terms lose no more than one rounding.
#pragma once

namespace slimfast {

// What rounding lost of `value` is in `lost`.
struct SplitSum {
    double value, lost;
};

// Adds to a sum in two parts what rounding would lose (Neumaier's variant of Kahan's summation).
inline __attribute__((always_inline)) void add_exactly(double term, double& sum, double& lost) {
    const double next = sum + term;
    const double a = sum < 0 ? -sum : sum, b = term < 0 ? -term : term;
    lost += a >= b ? (sum - next) + term : (term - next) + sum;
    sum = next;
}

}  // namespace slimfast
