// Parts of problems that several ops have, made of checked arguments. What they point to is kept by the tensors, which
// are replaced by copies where the kernels could not read them.
#pragma once

#include "bindings/tensors.h"

namespace mvit::bindings {

// The arguments of a pooling, one entry (or three sizes) per branch.
struct PoolArguments {
    std::vector<Tensor> x;
    std::vector<int64_t> thw;
    bool has_cls;
    std::vector<std::string> mode;
    std::vector<int64_t> kernel, stride, padding;
    std::vector<std::optional<Tensor>> weight, norm_weight, norm_bias;
    std::vector<double> norm_eps; // below 0: no norm
};

// Without outputs.
PoolProblem pool_problem(const char *op, PoolArguments &a);

// One table of decomposed_rel_pos, (queries, keys, head dim).
Parameter rel_pos_table(const char *op, const char *argument, std::optional<Tensor> &table, int64_t queries,
                        int64_t keys, int64_t head_dim, const Tensor &like);

Residual residual_of(const char *op, const std::string &residual);

// k and v of a problem whose dtype and sizes besides the keys are set; `like` and its name are what they must agree
// with.
void set_keys(const char *op, AttentionProblem &p, Tensor &k, Tensor &v, const char *argument, const Tensor &like);

// The grid of the keys, which there must be as many of.
void set_grid_k(const char *op, AttentionProblem &p, const std::vector<int64_t> &grid_k);

} // namespace mvit::bindings
