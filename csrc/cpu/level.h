// The kernels of the level being compiled. Each is defined in the file of its name.
//
// Everything in csrc/cpu but dispatch.cpp is compiled once per level, inside a namespace of the level's name. Nothing
// there may call a non-trivial inline function of the standard library: the linker keeps one copy of such a function
// for all levels, possibly one with instructions that the running CPU lacks.
#pragma once

#include "cpu/kernels.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

int64_t pool3d_norm_scratch(const PoolProblem &, int64_t threads);
void pool3d_norm(const PoolProblem &, void *scratch, const ParallelFor &);
int64_t decomposed_rel_pos_scratch(const RelPosProblem &, int64_t threads);
void decomposed_rel_pos(const RelPosProblem &, void *scratch, const ParallelFor &);
int64_t pooling_attention_scratch(const AttentionProblem &, int64_t threads);
void pooling_attention(const AttentionProblem &, void *scratch, const ParallelFor &);
int64_t pool3d_norm_backward_scratch(const PoolBackwardProblem &, int64_t threads);
void pool3d_norm_backward(const PoolBackwardProblem &, void *scratch, const ParallelFor &);
int64_t decomposed_rel_pos_backward_scratch(const RelPosBackwardProblem &, int64_t threads);
void decomposed_rel_pos_backward(const RelPosBackwardProblem &, void *scratch, const ParallelFor &);
int64_t pooling_attention_backward_scratch(const AttentionBackwardProblem &, int64_t threads);
void pooling_attention_backward(const AttentionBackwardProblem &, void *scratch, const ParallelFor &);
int64_t multiply_add_peak(DType, int64_t rounds);
int64_t linear_scratch(const LinearProblem &, int64_t threads);
void linear(const LinearProblem &, void *scratch, const ParallelFor &);
int64_t layer_norm_scratch(const LayerNormProblem &, int64_t threads);
void layer_norm(const LayerNormProblem &, void *scratch, const ParallelFor &);
int64_t norm_mlp_scratch(const NormMlpProblem &, int64_t threads);
void norm_mlp(const NormMlpProblem &, void *scratch, const ParallelFor &);

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
