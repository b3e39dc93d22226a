// How a kernel spreads its tasks over the caller's threads.
#pragma once

#include "common/grid.h"
#include "cpu/kernels.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// Waking a thread costs about as much time as this many floating-point operations; a worker is given at least as much.
constexpr int64_t kFlopPerWorker = 500'000;

static inline int64_t worker_count(int64_t threads, int64_t tasks, double flop) {
    return clamp(int64_t(flop / kFlopPerWorker), 1, max(1, min(threads, tasks)));
}

// Calls f(worker, task) once for each task. Workers take the next task when they are free, so unequal tasks and busy
// cores even out; which worker runs a task must not change its result.
template <class F> static void for_each_task(const ParallelFor &parallel, int64_t workers, int64_t tasks, const F &f) {
    struct Context {
        const F &f;
        int64_t tasks;
        int64_t *next;
    };
    int64_t next = 0;
    const Context context = {f, tasks, &next};
    const auto body = [](const void *pointer, int64_t begin, int64_t end) {
        const Context &c = *static_cast<const Context *>(pointer);
        for (int64_t worker = begin; worker < end; ++worker)
            for (int64_t task; (task = __atomic_fetch_add(c.next, 1, __ATOMIC_RELAXED)) < c.tasks;)
                c.f(worker, task);
    };
    if (workers == 1)
        body(&context, 0, 1);
    else
        parallel.run(workers, body, &context);
}

// Hands out aligned pieces of the scratch memory. With no memory behind it, measures how much is needed: the same
// function that lays out a kernel's scratch also sizes it.
class Arena {
public:
    explicit Arena(void *memory) : memory_(static_cast<char *>(memory)) {}
    template <class T> T *take(int64_t n) {
        char *const piece = memory_ ? memory_ + used_ : nullptr;
        used_ += round_up(n * int64_t(sizeof(T)), 64);
        return reinterpret_cast<T *>(piece);
    }
    int64_t used() const { return used_; }

private:
    char *memory_;
    int64_t used_ = 0;
};

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
