// Blocks of one launch that belong to different things, one range after the other.
#pragma once

#include "cuda/primitives/platform.h"

#include <cstdint>

namespace mvit::cuda {

// Which range a block is in, blocks(i) being how many range i has; makes its number one within the range.
template <class Blocks> MVIT_DEVICE int range_of_block(int64_t &block, const Blocks &blocks) {
    int i = 0;
    while (block >= blocks(i))
        block -= blocks(i++);
    return i;
}

} // namespace mvit::cuda
