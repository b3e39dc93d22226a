// Pooling attention on a GPU from plain C++: memory and a stream of the CUDA runtime, the problem, one call. Compares
// with three loops. Ends with 77 where there is no GPU: what CTest and Automake take for "skipped".
#include "cuda/kernels.h"
#include "problem.h"

#include <cstdio>
#include <cstdlib>
#include <cuda_runtime_api.h>

namespace {

constexpr int kSkipped = 77;

void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess)
        return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

// Memory of the current device, freed with its owner.
class Buffer {
public:
    explicit Buffer(size_t bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
    explicit Buffer(const std::vector<float> &values) : Buffer(values.size() * sizeof(float)) {
        check(cudaMemcpy(data_, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    ~Buffer() { cudaFree(data_); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    void *get() const { return data_; }
    float *floats() const { return static_cast<float *>(data_); }

private:
    void *data_ = nullptr;
};

} // namespace

int main() {
    int devices = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
        std::printf("no CUDA device: %s\n", error == cudaSuccess ? "there are none" : cudaGetErrorString(error));
        return kSkipped;
    }
    const std::vector<float> q = random_tokens(kQueries, 1), k = random_tokens(kKeys, 2), v = random_tokens(kKeys, 3);
    std::vector<float> out(q.size());
    const Buffer device_q(q), device_k(k), device_v(v), device_out(out);
    const Buffer log_sum_exp(size_t(kHeads * kQueries) * sizeof(float));
    const mvit::AttentionProblem problem = attention_problem(device_q.floats(), device_k.floats(), device_v.floats(),
                                                             device_out.floats(), log_sum_exp.floats());

    // A cudaStream_t of the caller's; cudaMalloc aligns to 256 bytes, which is what scratch needs.
    cudaStream_t stream;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    const Buffer scratch(size_t(mvit::cuda::pooling_attention_forward_scratch(problem)));
    if (const char *const reason = mvit::cuda::pooling_attention_forward(problem, scratch.get(), stream)) {
        std::fprintf(stderr, "pooling attention was not started: %s\n", reason);
        return 1;
    }
    check(cudaMemcpyAsync(out.data(), device_out.get(), out.size() * sizeof(float), cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "pooling attention");
    check(cudaStreamDestroy(stream), "cudaStreamDestroy");

    const double error = largest_error(q, k, v, out, problem.scale);
    std::printf("pooling attention, largest error %.1e\n", error);
    return error < kLargestError ? 0 : 1;
}
