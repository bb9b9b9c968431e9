// What device/mma_instructions.cuh does with instructions.
#pragma once

#include "../reduce.cuh"

namespace slimfast::cuda {

// Calls action(i, left, right) for the eight products of each of this lane's four sums, in their order.
template <class T, class Action>
void each_product(const T (&a)[4], const T (&b)[2], emulation::Site site, Action action) {
    struct Operands {
        const T (&a)[4];
        const T (&b)[2];
    };
    const Operands mine{a, b};
    const std::uint64_t* all = emulation::exchange(emulation::to_bits<const Operands*>(&mine), site);
    const auto of_lane = [all](int lane) { return emulation::from_bits<const Operands*>(all[lane]); };
    for (int i = 0; i < 4; ++i) {
        const int row = lane_index() / 4 + 8 * (i / 2);
        const int column = 2 * (lane_index() % 4) + i % 2;
        for (int k = 0; k < 8; ++k) {
            action(i, of_lane(row % 8 * 4 + k % 4)->a[row / 8 + k / 4 * 2],
                   of_lane(column * 4 + k % 4)->b[k / 4]);
        }
    }
    // Nobody leaves with its operands before all have read them.
    emulation::exchange(0, site);
}

inline void multiply_add(double (&sum)[4], const double (&a)[4], const double (&b)[2], EMULATION_SITE) {
    each_product(a, b, {file, line}, [&](int i, double left, double right) { sum[i] += left * right; });
}

// To nearest, ties away from zero.
inline float to_tf32(float x) {
    const auto bits = static_cast<std::uint32_t>(emulation::to_bits(x));
    return emulation::from_bits<float>((bits + 0x1000u) & 0xffffe000u);
}

// Products exact, their sum cut off to float32.
inline void multiply_add(float (&sum)[4], const float (&a)[4], const float (&b)[2], EMULATION_SITE) {
    double exact[4] = {sum[0], sum[1], sum[2], sum[3]};
    each_product(a, b, {file, line}, [&](int i, float left, float right) {
        exact[i] += static_cast<double>(left) * static_cast<double>(right);
    });
    for (int i = 0; i < 4; ++i) {
        const float near = static_cast<float>(exact[i]);
        const bool away = std::fabs(static_cast<double>(near)) > std::fabs(exact[i]);
        sum[i] = away ? std::nextafter(near, 0.0f) : near;
    }
}

}  // namespace slimfast::cuda
