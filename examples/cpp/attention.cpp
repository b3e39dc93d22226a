// Pooling attention from plain C++: fill the problem, bring memory and threads, call. Compares with three loops.
#include "cpu/kernels.h"
#include "problem.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

namespace {

constexpr int64_t kThreads = 2;

// Whatever threads the program has; here, two new ones for each call.
void run_on_threads(int64_t count, mvit::cpu::ParallelFor::Body body, const void *context) {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < kThreads; ++i)
        threads.emplace_back(body, context, count * i / kThreads, count * (i + 1) / kThreads);
    for (std::thread &thread : threads)
        thread.join();
}

} // namespace

int main() {
    const std::vector<float> q = random_tokens(kQueries, 1), k = random_tokens(kKeys, 2), v = random_tokens(kKeys, 3);
    std::vector<float> out(q.size()), lse(size_t(kHeads * kQueries));
    const mvit::AttentionProblem problem = attention_problem(q.data(), k.data(), v.data(), out.data(), lse.data());

    const mvit::cpu::Kernels &kernels = mvit::cpu::kernels();
    const int64_t bytes = kernels.pooling_attention_scratch(problem, kThreads);
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64),
                                                              std::free);
    kernels.pooling_attention(problem, scratch.get(), {run_on_threads, kThreads});

    const double error = largest_error(q, k, v, out, problem.scale);
    std::printf("pooling attention on level %s, largest error %.1e\n", kernels.level, error);
    return error < kLargestError ? 0 : 1;
}
