// The means and the sums of squares of all rows, which covariance centres by and traces are made of.
#include "covariance.hpp"
#include "elements.cuh"
#include "reduce.cuh"

namespace slimfast::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kWarps = kThreads / 32;

// A warp to each row where rows are contiguous; else a lane to each row, and the warps share its length.
__global__ void __launch_bounds__(kThreads)
    moments(const i64* __restrict__ table, int count, double* __restrict__ means,
            double* __restrict__ squares) {
    auto* partial = reinterpret_cast<double*>(shared_memory());
    const int index = find_segment(table, count, blockIdx.x);
    const i64* layer = table + count + 1 + i64{index} * kCovFields;
    const i64 first = (blockIdx.x - table[index]) * kMomentRows;
    const i64 rows = min(i64{kMomentRows}, layer[kCovRows] - first);
    const i64 length = layer[kCovColumns];
    const i64 row_stride = layer[kCovRowStride];
    const i64 stride = layer[kCovColumnStride];
    double* mean_out = means + layer[kCovFirstRow] + first;
    double* square_out = squares + layer[kCovFirstRow] + first;
    const int lane = lane_index();
    const int warp = warp_index();
    with_elements(layer, [&](auto* x) {
        x += first * row_stride;
        if (stride <= row_stride) {
            for (int r = warp; r < rows; r += kWarps) {
                double sum = 0;
                for (i64 i = lane; i < length; i += 32) sum += to_double(x[r * row_stride + i * stride]);
                const double mean = warp_sum(sum) / static_cast<double>(length);
                double square = 0;
                for (i64 i = lane; i < length; i += 32) {
                    const double deviation = to_double(x[r * row_stride + i * stride]) - mean;
                    square += deviation * deviation;
                }
                square = warp_sum(square);
                if (lane == 0) {
                    mean_out[r] = mean;
                    square_out[r] = square;
                }
            }
            return;
        }
        // Two passes over the length: the sum, then the squares about the mean.
        double mean = 0;
        for (int pass = 0; pass < 2; ++pass) {
            double sum = 0;
            for (i64 i = warp; lane < rows && i < length; i += kWarps) {
                const double value = to_double(x[lane * row_stride + i * stride]) - mean;
                sum += pass == 0 ? value : value * value;
            }
            partial[warp * 32 + lane] = sum;
            __syncthreads();
            double total = 0;
            for (int w = 0; w < kWarps; ++w) total += partial[w * 32 + lane];
            __syncthreads();
            if (pass == 0) mean = total / static_cast<double>(length);
            if (warp == 0 && lane < rows)
                (pass == 0 ? mean_out : square_out)[lane] = pass == 0 ? mean : total;
        }
    });
}

__global__ void __launch_bounds__(kThreads)
    traces_of(const i64* __restrict__ layers, const double* __restrict__ squares, double* traces) {
    const i64* layer = layers + i64{blockIdx.x} * kCovFields;
    double sum = 0;
    for (i64 r = threadIdx.x; r < layer[kCovRows]; r += kThreads) sum += squares[layer[kCovFirstRow] + r];
    sum = block_sum(sum, reinterpret_cast<double*>(shared_memory()));
    if (threadIdx.x == 0) traces[blockIdx.x] = sum / static_cast<double>(max(layer[kCovColumns] - 1, i64{1}));
}

}  // namespace

void row_moments(Stream stream, const i64* table, int count, i64 blocks, double* means, double* squares) {
    launch("row_moments", moments, stream, Shape{blocks, kThreads, kThreads * sizeof(double)}, table, count,
           means, squares);
}

void covariance_traces(Stream stream, const i64* layers, int count, const double* squares, double* traces) {
    launch("covariance_traces", traces_of, stream, Shape{count, kThreads, kWarps * sizeof(double)}, layers,
           squares, traces);
}

}  // namespace slimfast::cuda
