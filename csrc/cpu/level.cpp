// The table of functions of one instruction-set level.
#include "cpu/level.h"

#define MVIT_TEXT_OF(x) #x
#define MVIT_TEXT(x) MVIT_TEXT_OF(x)

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

extern const Kernels kernels;
const Kernels kernels = {
    MVIT_TEXT(MVIT_CPU_LEVEL_NAME), pool3d_norm_scratch, pool3d_norm,       decomposed_rel_pos_scratch,
    decomposed_rel_pos,             pooling_attention_scratch, pooling_attention,
};

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
