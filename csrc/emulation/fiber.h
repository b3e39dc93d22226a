// One stack of its own per CUDA thread, and a switch between them that costs some ten instructions.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__) || !defined(__linux__)
#define MVIT_FIBER_UCONTEXT 1
#include <ucontext.h>
#endif

namespace mvit::emulation {

class Fiber {
public:
    Fiber();
    Fiber(const Fiber &) = delete;
    Fiber &operator=(const Fiber &) = delete;
    ~Fiber();

    // Makes resume() begin with entry(argument). What ran on this stack before is dropped. The entry function must
    // not throw and must end with a suspend() that never comes back.
    void start(void (*entry)(void *), void *argument);
    void resume();  // from the scheduler: runs the fiber until it suspends
    void suspend(); // from the fiber: back to the scheduler

private:
    static void enter();

    void (*entry_)(void *) = nullptr;
    void *argument_ = nullptr;
    char *stack_ = nullptr;
#ifdef MVIT_FIBER_UCONTEXT
    ucontext_t here_, scheduler_;
#else
    void *here_ = nullptr, *scheduler_ = nullptr; // stack pointers while not running
#endif
    void *fake_here_ = nullptr, *fake_scheduler_ = nullptr; // AddressSanitizer's
    const void *scheduler_stack_ = nullptr;
    size_t scheduler_stack_size_ = 0;
};

} // namespace mvit::emulation
