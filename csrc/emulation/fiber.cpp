#include "emulation/fiber.h"

#include <cstdint>
#include <new>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define MVIT_FIBER_ASAN 1
#endif

namespace mvit::emulation {
namespace {

#ifdef MVIT_FIBER_ASAN
constexpr size_t kStack = 256 << 10;
#else
constexpr size_t kStack = 64 << 10;
#endif
constexpr size_t kGuard = 4096;

thread_local Fiber *starting = nullptr;

} // namespace

#ifndef MVIT_FIBER_UCONTEXT
// Saves what the System V ABI says a call preserves, stores the stack pointer at *from and goes on at `to`.
extern "C" void mvit_fiber_switch(void **from, void *to);
asm(R"(
.text
.p2align 4
.globl mvit_fiber_switch
.hidden mvit_fiber_switch
.type mvit_fiber_switch, @function
mvit_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size mvit_fiber_switch, .-mvit_fiber_switch
)");
#endif

Fiber::Fiber() {
    void *const memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        throw std::bad_alloc();
    stack_ = static_cast<char *>(memory);
    mprotect(stack_, kGuard, PROT_NONE); // an overflow is a fault, not a write into the next stack
}

Fiber::~Fiber() { munmap(stack_, kStack); }

void Fiber::start(void (*entry)(void *), void *argument) {
    entry_ = entry;
    argument_ = argument;
    fake_here_ = nullptr;
#ifdef MVIT_FIBER_ASAN
    // What ran here before was dropped, not unwound; the stack may even be one of an earlier launch, mapped again.
    __asan_unpoison_memory_region(stack_ + kGuard, kStack - kGuard);
#endif
#ifdef MVIT_FIBER_UCONTEXT
    getcontext(&here_);
    here_.uc_stack.ss_sp = stack_;
    here_.uc_stack.ss_size = kStack;
    here_.uc_link = nullptr;
    makecontext(&here_, &Fiber::enter, 0);
#else
    // Six registers, the address to return to, and a null return address above it; at the entry of a function the
    // stack pointer is 8 past a multiple of 16.
    void **top = reinterpret_cast<void **>(stack_ + kStack - 16);
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(&Fiber::enter);
    for (int i = 0; i < 6; ++i)
        *--top = nullptr;
    here_ = top;
#endif
}

void Fiber::enter() {
    Fiber *const self = starting;
#ifdef MVIT_FIBER_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &self->scheduler_stack_, &self->scheduler_stack_size_);
#endif
    self->entry_(self->argument_);
}

void Fiber::resume() {
    starting = this;
#ifdef MVIT_FIBER_ASAN
    __sanitizer_start_switch_fiber(&fake_scheduler_, stack_ + kGuard, kStack - kGuard);
#endif
#ifdef MVIT_FIBER_UCONTEXT
    swapcontext(&scheduler_, &here_);
#else
    mvit_fiber_switch(&scheduler_, here_);
#endif
#ifdef MVIT_FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake_scheduler_, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#ifdef MVIT_FIBER_ASAN
    __sanitizer_start_switch_fiber(&fake_here_, scheduler_stack_, scheduler_stack_size_);
#endif
#ifdef MVIT_FIBER_UCONTEXT
    swapcontext(&here_, &scheduler_);
#else
    mvit_fiber_switch(&here_, scheduler_);
#endif
#ifdef MVIT_FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake_here_, &scheduler_stack_, &scheduler_stack_size_);
#endif
}

} // namespace mvit::emulation
