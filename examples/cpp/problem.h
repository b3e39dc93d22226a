// The problem that both examples solve, and its answer by three loops.
#pragma once

#include "common/problem.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

constexpr int64_t kHeads = 2, kQueries = 197, kKeys = 50, kDim = 96;
constexpr double kLargestError = 1e-5;

inline std::vector<float> random_tokens(int64_t tokens, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(size_t(kHeads * tokens * kDim));
    for (float &value : values)
        value = normal(generator);
    return values;
}

// out[query][head][:] = softmax(scale * q k^T) v + q in float32, one sample; the pointers are for the kernel to follow.
inline mvit::AttentionProblem attention_problem(const float *q, const float *k, const float *v, float *out,
                                                float *log_sum_exp) {
    mvit::AttentionProblem problem = {};
    problem.dtype = mvit::DType::f32;
    problem.batch = 1, problem.heads = kHeads, problem.queries = kQueries, problem.keys = kKeys;
    problem.head_dim = kDim;
    problem.residual = mvit::Residual::all;
    problem.scale = 1 / std::sqrt(double(kDim));
    problem.q = q, problem.k = k, problem.v = v;
    problem.q_stride_h = kQueries * kDim, problem.k_stride_h = problem.v_stride_h = kKeys * kDim;
    problem.q_stride_n = problem.k_stride_n = problem.v_stride_n = kDim;
    problem.out = out, problem.lse = log_sum_exp;
    return problem;
}

// The same in float64, against `out`.
inline double largest_error(const std::vector<float> &q, const std::vector<float> &k, const std::vector<float> &v,
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
            for (int64_t d = 0; d < kDim; ++d) {
                const double error = std::fabs(sum[size_t(d)] + query[d] - out[size_t((i * kHeads + head) * kDim + d)]);
                worst = error <= worst ? worst : error; // NaN is the worst
            }
        }
    return worst;
}
