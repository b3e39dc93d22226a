// Runs CUDA blocks on a CPU: one fiber per thread, one block after the other, in an order that the seed shuffles.
//
// What a GPU would answer with wrong numbers or a hang is an Error here that says where: a barrier that not all threads
// reach, a warp instruction that not all lanes take part in, shared memory out of range or misaligned, read before it
// was written or while a cp.async is under way, or touched by two threads with no barrier between (one of them
// writing). Shared memory is filled with 0xff (NaN in every format) before each block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace mvit::emulation {

constexpr int kWarp = 32;

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] void fail(const std::string &what);

// Runs `kernel` for each thread of `blocks` blocks. Throws Error.
void launch(int64_t blocks, int threads, size_t shared_bytes, uint64_t seed, const std::function<void()> &kernel);

// What kernels call, through csrc/cuda/primitives.
int thread_index();
int64_t block_index();
void sync_block(const char *file, int line);
void sync_warp();
float shuffle_xor(float value, int mask);
bool any(bool value);
void read_shared(uint32_t at, void *to, uint32_t bytes);
void write_shared(uint32_t at, const void *from, uint32_t bytes);
void check_global(const void *at, size_t bytes);
void cp_async_16(uint32_t to, const void *from, bool valid);
void cp_async_commit();
void cp_async_wait(int groups);

// One instruction of a whole warp. Each lane brings a pointer to its operands; the last to arrive runs
// `work(operands of 32 lanes)`, and then all go on.
using WarpWork = void (*)(void *const *operands);
void together(const char *instruction, void *operands, WarpWork work);

// Of the GPU that launches are planned for: 1 unless a test says otherwise, so that one block does all keys.
int64_t multiprocessors();
void set_multiprocessors(int64_t count);

// The most ways in which one ldmatrix of the last launch hit the same group of banks; 1 is free of conflicts.
int bank_conflicts();
void note_bank_conflicts(int ways);

} // namespace mvit::emulation
