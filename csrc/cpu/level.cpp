// The table of functions of one instruction-set level.
#include "cpu/level.h"

#define MVIT_TEXT_OF(x) #x
#define MVIT_TEXT(x) MVIT_TEXT_OF(x)

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

extern const Kernels kernels;
const Kernels kernels = {
    MVIT_TEXT(MVIT_CPU_LEVEL_NAME),
    pool3d_norm_scratch,
    pool3d_norm,
    decomposed_rel_pos_scratch,
    decomposed_rel_pos,
    pooling_attention_scratch,
    pooling_attention,
    pool3d_norm_backward_scratch,
    pool3d_norm_backward,
    decomposed_rel_pos_backward_scratch,
    decomposed_rel_pos_backward,
    pooling_attention_backward_scratch,
    pooling_attention_backward,
    multiply_add_peak,
    linear_scratch,
    linear,
    layer_norm_scratch,
    layer_norm,
    norm_mlp_scratch,
    norm_mlp,
};

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
