// Pooling attention from plain C++: fill the problem, bring memory and threads, call. Compares with three loops.
#include "cpu/kernels.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kHeads = 2, kQueries = 197, kKeys = 50, kDim = 96;
constexpr int64_t kThreads = 2;

// Whatever threads the program has; here, two new ones for each call.
void run_on_threads(int64_t count, mvit::cpu::ParallelFor::Body body, const void *context) {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < kThreads; ++i)
        threads.emplace_back(body, context, count * i / kThreads, count * (i + 1) / kThreads);
    for (std::thread &thread : threads)
        thread.join();
}

std::vector<float> random_tokens(int64_t tokens, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(size_t(kHeads * tokens * kDim));
    for (float &value : values)
        value = normal(generator);
    return values;
}

// out[query][head][:] = softmax(scale * q k^T) v + q, in float64.
double largest_error(const std::vector<float> &q, const std::vector<float> &k, const std::vector<float> &v,
                     const std::vector<float> &out, double scale) {
    double worst = 0;
    for (int64_t head = 0; head < kHeads; ++head)
        for (int64_t i = 0; i < kQueries; ++i) {
            const float *const query = &q[size_t((head * kQueries + i) * kDim)];
            std::vector<double> weight(kKeys), sum(kDim);
            double total = 0;
            for (int64_t j = 0; j < kKeys; ++j) {
                double score = 0;
                for (int64_t d = 0; d < kDim; ++d)
                    score += double(query[d]) * k[size_t((head * kKeys + j) * kDim + d)];
                total += weight[size_t(j)] = std::exp(scale * score);
            }
            for (int64_t j = 0; j < kKeys; ++j)
                for (int64_t d = 0; d < kDim; ++d)
                    sum[size_t(d)] += weight[size_t(j)] / total * v[size_t((head * kKeys + j) * kDim + d)];
            for (int64_t d = 0; d < kDim; ++d)
                worst = std::fmax(worst,
                                  std::fabs(sum[size_t(d)] + query[d] - out[size_t((i * kHeads + head) * kDim + d)]));
        }
    return worst;
}

} // namespace

int main() {
    const std::vector<float> q = random_tokens(kQueries, 1), k = random_tokens(kKeys, 2), v = random_tokens(kKeys, 3);
    std::vector<float> out(size_t(kQueries * kHeads * kDim)), lse(size_t(kHeads * kQueries));

    mvit::AttentionProblem problem = {};
    problem.dtype = mvit::DType::f32;
    problem.batch = 1, problem.heads = kHeads, problem.queries = kQueries, problem.keys = kKeys;
    problem.head_dim = kDim;
    problem.residual = mvit::Residual::all;
    problem.scale = 1 / std::sqrt(double(kDim));
    problem.q = q.data(), problem.k = k.data(), problem.v = v.data();
    problem.q_stride_h = kQueries * kDim, problem.k_stride_h = problem.v_stride_h = kKeys * kDim;
    problem.q_stride_n = problem.k_stride_n = problem.v_stride_n = kDim;
    problem.out = out.data(), problem.lse = lse.data();

    const mvit::cpu::Kernels &kernels = mvit::cpu::kernels();
    const int64_t bytes = kernels.pooling_attention_scratch(problem, kThreads);
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64),
                                                              std::free);
    kernels.pooling_attention(problem, scratch.get(), {run_on_threads, kThreads});

    const double error = largest_error(q, k, v, out, problem.scale);
    std::printf("pooling attention on level %s, largest error %.1e\n", kernels.level, error);
    return error < 1e-5 ? 0 : 1;
}
