// The CPU kernels on several threads, from several threads at once: built with ThreadSanitizer, it reports
// what they share without order, and here that the number of threads changes no bit. `make sanitize-threads`
// runs it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/cpu/covariance.hpp"
#include "../../csrc/cpu/eigvalsh.hpp"
#include "../../csrc/cpu/gather.hpp"
#include "../../csrc/cpu/pivoted_cholesky.hpp"

using namespace slimfast;
namespace {

std::vector<float> normal(i64 count, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> values(count);
    for (float& value : values) value = distribution(generator);
    return values;
}

// Everything that the ops give for layers of these shapes, one after another.
std::vector<double> everything(const std::vector<std::vector<float>>& layers,
                               const std::vector<std::pair<i64, i64>>& shapes, int threads) {
    std::vector<std::vector<float>> grams, values, thin;
    std::vector<CovarianceLayer> covariances;
    std::vector<SymmetricMatrix> matrices;
    std::vector<double> traces(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const auto [n, d] = shapes[i];
        grams.emplace_back(n * n);
        values.emplace_back(n);
        covariances.push_back(
            {{{layers[i].data(), Dtype::kFloat32, n, d, d, 1}}, true, Dtype::kFloat32, grams[i].data()});
        matrices.push_back({{grams[i].data(), Dtype::kFloat32, n, n, n, 1}, values[i].data()});
    }
    covariance(covariances, traces.data(), threads, default_isa());
    eigvalsh(matrices, threads, default_isa());

    std::vector<CholeskyTask> choices;
    std::vector<std::vector<i64>> orders;
    std::vector<std::vector<float>> factors, residuals;
    std::vector<GatherTask> gathers;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const auto [n, d] = shapes[i];
        const i64 rank = n / 2;
        orders.emplace_back(rank);
        factors.emplace_back(rank * n);
        residuals.emplace_back(rank);
        choices.push_back({matrices[i].a, rank, orders[i].data(), factors[i].data(), residuals[i].data(), 0});
    }
    pivoted_cholesky(choices, threads, default_isa());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const auto [n, d] = shapes[i];
        std::sort(orders[i].begin(), orders[i].end());
        const i64 kept = static_cast<i64>(orders[i].size());
        thin.emplace_back(kept * d);
        gathers.push_back({reinterpret_cast<const char*>(layers[i].data()),
                           reinterpret_cast<char*>(thin[i].data()),
                           sizeof(float),
                           {{kept, d, orders[i].data()}, {d, 1, nullptr}}});
    }
    gather(gathers, threads);

    std::vector<double> all(traces);
    for (const auto& part : values) all.insert(all.end(), part.begin(), part.end());
    for (const auto& part : thin) all.insert(all.end(), part.begin(), part.end());
    return all;
}

}  // namespace

int main() {
    // Small ones of a size, middle ones, one for a team; wide layers are cut along their positions.
    std::vector<std::pair<i64, i64>> shapes;
    for (i64 i = 0; i < 40; ++i) shapes.push_back({8 + i % 3, 30 + i});
    for (i64 n : {40, 64, 65, 130, 200}) shapes.push_back({n, 9 * n});
    shapes.push_back({24, 60000});
    shapes.push_back({1290, 1300});
    std::vector<std::vector<float>> layers;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        layers.push_back(normal(shapes[i].first * shapes[i].second, static_cast<unsigned>(i)));
    }
    const std::vector<double> alone = everything(layers, shapes, 1);
    for (int threads : {2, 3, 7}) {
        if (everything(layers, shapes, threads) != alone) {
            std::printf("%d threads change the result\n", threads);
            return EXIT_FAILURE;
        }
    }
    std::vector<std::vector<double>> results(3);
    std::vector<std::thread> callers;
    for (auto& result : results) {
        callers.emplace_back([&] { result = everything(layers, shapes, 2); });
    }
    for (std::thread& caller : callers) caller.join();
    for (const auto& result : results) {
        if (result != alone) {
            std::printf("calls at the same time change the result\n");
            return EXIT_FAILURE;
        }
    }
    std::printf("the same bits from 1, 2, 3 and 7 threads, and from three callers at once\n");
    return EXIT_SUCCESS;
}
