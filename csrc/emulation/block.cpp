#include "emulation/block.h"
#include "emulation/fiber.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <vector>

namespace mvit::emulation {
namespace {

struct Copy {
    uint32_t to;
    bool valid;
    const void *from;
};

enum class State { ready, in_warp, at_barrier, done };

struct Thread {
    Fiber fiber;
    State state = State::ready;
    std::string where;
    std::vector<Copy> open; // started, not yet in a group
    std::deque<std::vector<Copy>> groups;
};

struct Warp {
    int arrived = 0;
    uint32_t syncs = 0; // sync_warp() passed
    const char *instruction = nullptr;
    void *operands[kWarp] = {};
};

// Who touched two bytes of shared memory last. A time is (barriers passed by the block, sync_warps by the warp).
struct Touch {
    uint32_t barriers = 0, syncs = 0; // barriers 0: never
    int32_t thread = -1;
    bool many_lanes = false, many_warps = false; // further readers at the same time
};
struct Cell {
    Touch write, read;
    bool pending = false; // a cp.async is under way
};

struct Random {
    uint64_t state;
    uint64_t operator()() { // splitmix64
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    size_t below(size_t n) { return size_t((*this)() % n); }
};

class Block {
public:
    Block(int threads, size_t shared_bytes, uint64_t seed, const std::function<void()> &kernel)
        : kernel_(kernel), random_{seed}, patience_(int(seed % 3)), threads_(size_t(threads)),
          warps_(size_t(threads) / kWarp), shared_(shared_bytes), cells_((shared_bytes + 1) / 2) {
        for (auto &thread : threads_)
            thread = std::make_unique<Thread>();
    }

    void run(int64_t index);

    int current() const { return current_; }
    int64_t index() const { return index_; }
    Thread &thread() { return *threads_[size_t(current_)]; }
    Warp &warp() { return warps_[size_t(current_ / kWarp)]; }

    void wait(State state, std::string where) {
        thread().state = state;
        thread().where = std::move(where);
        thread().fiber.suspend();
    }

    void barrier(const char *file, int line);
    void together(const char *instruction, void *operands, WarpWork work);
    unsigned char *shared(uint32_t at, uint32_t bytes, const char *what);
    void note_read(uint32_t at, uint32_t bytes);
    void note_write(uint32_t at, uint32_t bytes);
    void start_copy(const Copy &copy);
    void land(const Copy &copy);
    std::string place() const {
        return "block " + std::to_string(index_) + ", thread " + std::to_string(current_) + ": ";
    }

private:
    static void enter(void *block);
    void run_warp(size_t warp);
    [[noreturn]] void stuck();
    bool ordered(const Touch &before) const;

    const std::function<void()> &kernel_;
    Random random_;
    int patience_; // 0: run a warp as far as it goes; 1: change at random; 2: change after every instruction
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Warp> warps_;
    std::vector<unsigned char> shared_;
    std::vector<Cell> cells_;
    int current_ = 0;
    int64_t index_ = 0;
    uint32_t barriers_ = 1;
    int at_barrier_ = 0;
    std::exception_ptr error_;
};

thread_local Block *block = nullptr;
thread_local int worst_conflicts = 1;
thread_local int64_t multiprocessor_count = 1;

void Block::enter(void *argument) {
    Block *const self = static_cast<Block *>(argument);
    try {
        self->kernel_();
        if (!self->thread().open.empty() || !self->thread().groups.empty())
            fail("the thread ends with a cp.async under way");
    } catch (...) {
        self->error_ = std::current_exception();
    }
    self->wait(State::done, "its end");
}

void Block::run(int64_t index) {
    index_ = index;
    barriers_ = 1;
    at_barrier_ = 0;
    error_ = nullptr;
    std::fill(shared_.begin(), shared_.end(), 0xff);
    std::fill(cells_.begin(), cells_.end(), Cell{});
    std::fill(warps_.begin(), warps_.end(), Warp{});
    for (auto &thread : threads_) {
        thread->state = State::ready;
        thread->open.clear();
        thread->groups.clear();
        thread->fiber.start(&Block::enter, this);
    }
    std::vector<size_t> runnable;
    for (;;) {
        runnable.clear();
        bool finished = true;
        for (size_t w = 0; w < warps_.size(); ++w) {
            bool ready = false;
            for (int lane = 0; lane < kWarp; ++lane) {
                const State state = threads_[w * kWarp + size_t(lane)]->state;
                ready = ready || state == State::ready;
                finished = finished && state == State::done;
            }
            if (ready)
                runnable.push_back(w);
        }
        if (finished)
            return;
        if (runnable.empty())
            stuck();
        run_warp(runnable[random_.below(runnable.size())]);
    }
}

// Runs the ready lanes of one warp, in a random order, once or until none is ready.
void Block::run_warp(size_t warp) {
    int order[kWarp];
    for (;;) {
        int count = 0;
        for (int lane = 0; lane < kWarp; ++lane)
            if (threads_[warp * kWarp + size_t(lane)]->state == State::ready)
                order[count++] = int(warp) * kWarp + lane;
        if (count == 0)
            return;
        for (int i = count - 1; i > 0; --i)
            std::swap(order[i], order[random_.below(size_t(i) + 1)]);
        for (int i = 0; i < count; ++i) {
            current_ = order[i];
            // The last lane of an instruction goes on by itself, so a later one may have been woken and not yet run.
            if (threads_[size_t(current_)]->state == State::ready)
                threads_[size_t(current_)]->fiber.resume();
            if (error_)
                std::rethrow_exception(error_);
        }
        if (patience_ == 2 || (patience_ == 1 && random_() % 4 == 0))
            return;
    }
}

void Block::barrier(const char *file, int line) {
    const std::string where = std::string("sync_block at ") + file + ":" + std::to_string(line);
    for (const auto &other : threads_)
        if (other->state == State::at_barrier && other->where != where)
            fail("divergence: " + where + ", while another thread waits in " + other->where);
    if (++at_barrier_ == int(threads_.size())) {
        at_barrier_ = 0;
        ++barriers_;
        for (auto &other : threads_)
            if (other->state == State::at_barrier)
                other->state = State::ready;
        return;
    }
    wait(State::at_barrier, where);
}

void Block::together(const char *instruction, void *operands, WarpWork work) {
    Warp &warp = this->warp();
    if (warp.arrived > 0 && std::strcmp(warp.instruction, instruction) != 0)
        fail(std::string("divergence: ") + instruction + ", while other lanes of the warp wait in " + warp.instruction);
    warp.instruction = instruction;
    warp.operands[current_ % kWarp] = operands;
    if (++warp.arrived < kWarp) {
        wait(State::in_warp, instruction);
        return;
    }
    warp.arrived = 0;
    work(warp.operands);
    const size_t first = size_t(current_ / kWarp * kWarp);
    for (size_t lane = 0; lane < kWarp; ++lane)
        if (threads_[first + lane]->state == State::in_warp)
            threads_[first + lane]->state = State::ready;
}

void Block::stuck() {
    int waiting = -1, other = -1;
    for (size_t i = 0; i < threads_.size(); ++i) {
        if (threads_[i]->state != State::done)
            waiting = int(i);
    }
    for (size_t i = 0; i < threads_.size(); ++i)
        if (threads_[i]->where != threads_[size_t(waiting)]->where)
            other = int(i);
    current_ = waiting;
    std::string what = "divergence: waits for ever in " + thread().where;
    if (other >= 0)
        what += ", while thread " + std::to_string(other) + " is at " + threads_[size_t(other)]->where;
    fail(what);
}

unsigned char *Block::shared(uint32_t at, uint32_t bytes, const char *what) {
    if (size_t(at) + bytes > shared_.size())
        fail(std::string(what) + " of " + std::to_string(bytes) + " bytes at " + std::to_string(at) +
             " in shared memory of " + std::to_string(shared_.size()) + " bytes");
    if (at % bytes)
        fail(std::string(what) + " of " + std::to_string(bytes) + " bytes at " + std::to_string(at) +
             " in shared memory: misaligned");
    return shared_.data() + at;
}

// Whether something orders an earlier touch before what the current thread does now.
bool Block::ordered(const Touch &before) const {
    if (before.barriers != barriers_ || before.many_warps)
        return before.barriers != barriers_;
    if (before.thread == current_ && !before.many_lanes)
        return true;
    const bool same_warp = before.thread / kWarp == current_ / kWarp;
    return same_warp && before.syncs != warps_[size_t(current_ / kWarp)].syncs;
}

void Block::note_read(uint32_t at, uint32_t bytes) {
    const uint32_t syncs = warp().syncs;
    for (uint32_t i = at / 2; i < (at + bytes + 1) / 2; ++i) {
        Cell &cell = cells_[i];
        if (cell.pending)
            fail("reads shared memory at " + std::to_string(2 * i) + " while a cp.async to it is under way");
        if (cell.write.barriers == 0)
            fail("reads shared memory at " + std::to_string(2 * i) + " that nobody has written");
        if (!ordered(cell.write))
            fail("race: reads shared memory at " + std::to_string(2 * i) + " that thread " +
                 std::to_string(cell.write.thread) + " wrote, with no barrier between");
        Touch &read = cell.read;
        if (read.barriers == barriers_ && read.thread / kWarp != current_ / kWarp)
            read.many_warps = true;
        else if (read.barriers == barriers_ && read.syncs == syncs)
            read.many_lanes = read.many_lanes || read.thread != current_;
        else
            read = {barriers_, syncs, current_, false, false};
    }
}

void Block::note_write(uint32_t at, uint32_t bytes) {
    for (uint32_t i = at / 2; i < (at + bytes + 1) / 2; ++i) {
        Cell &cell = cells_[i];
        if (cell.pending)
            fail("writes shared memory at " + std::to_string(2 * i) + " while a cp.async to it is under way");
        if (!ordered(cell.write))
            fail("race: writes shared memory at " + std::to_string(2 * i) + " that thread " +
                 std::to_string(cell.write.thread) + " wrote, with no barrier between");
        if (!ordered(cell.read))
            fail("race: writes shared memory at " + std::to_string(2 * i) + " that thread " +
                 std::to_string(cell.read.thread) + " read, with no barrier between");
        cell.write = {barriers_, warp().syncs, current_, false, false};
    }
}

// Until it lands the target holds neither the old bytes nor the new ones.
void Block::start_copy(const Copy &copy) {
    unsigned char *const to = shared(copy.to, 16, "cp.async");
    note_write(copy.to, 16);
    std::memset(to, 0xff, 16);
    for (uint32_t i = copy.to / 2; i < copy.to / 2 + 8; ++i)
        cells_[i].pending = true;
    thread().open.push_back(copy);
}

void Block::land(const Copy &copy) {
    for (uint32_t i = copy.to / 2; i < copy.to / 2 + 8; ++i)
        cells_[i].pending = false;
    note_write(copy.to, 16);
    if (copy.valid)
        std::memcpy(shared_.data() + copy.to, copy.from, 16);
    else
        std::memset(shared_.data() + copy.to, 0, 16);
}

} // namespace

void fail(const std::string &what) { throw Error((block ? block->place() : std::string()) + what); }

void launch(int64_t blocks, int threads, size_t shared_bytes, uint64_t seed, const std::function<void()> &kernel) {
    if (threads < 1 || threads > 1024 || threads % kWarp)
        throw Error("launch: " + std::to_string(threads) + " threads in a block, it must be a multiple of 32 to 1024");
    Block running(threads, shared_bytes, seed, kernel);
    std::vector<int64_t> order(size_t(std::max<int64_t>(blocks, 0)));
    for (size_t i = 0; i < order.size(); ++i)
        order[i] = int64_t(i);
    Random random{~seed};
    for (size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1], order[random.below(i)]);
    worst_conflicts = 1;
    struct Current {
        explicit Current(Block *b) { block = b; }
        ~Current() { block = nullptr; }
    } current(&running);
    for (int64_t index : order)
        running.run(index);
}

int thread_index() { return block->current(); }
int64_t block_index() { return block->index(); }
void sync_block(const char *file, int line) { block->barrier(file, line); }

void together(const char *instruction, void *operands, WarpWork work) { block->together(instruction, operands, work); }

void sync_warp() {
    together("sync_warp", nullptr, [](void *const *) { ++block->warp().syncs; });
}

float shuffle_xor(float value, int mask) {
    struct Operands {
        float in, out;
        int mask;
    } operands = {value, 0, mask};
    together("shuffle_xor", &operands, [](void *const *lanes) {
        for (int lane = 0; lane < kWarp; ++lane) {
            auto *const mine = static_cast<Operands *>(lanes[lane]);
            if (mine->mask != static_cast<Operands *>(lanes[0])->mask || mine->mask < 0 || mine->mask >= kWarp)
                fail("shuffle_xor: the mask must be the same in all lanes and below 32");
            mine->out = static_cast<Operands *>(lanes[lane ^ mine->mask])->in;
        }
    });
    return operands.out;
}

bool any(bool value) {
    struct Operands {
        bool in, out;
    } operands = {value, false};
    together("any", &operands, [](void *const *lanes) {
        bool one = false;
        for (int lane = 0; lane < kWarp; ++lane)
            one = one || static_cast<Operands *>(lanes[lane])->in;
        for (int lane = 0; lane < kWarp; ++lane)
            static_cast<Operands *>(lanes[lane])->out = one;
    });
    return operands.out;
}

void read_shared(uint32_t at, void *to, uint32_t bytes) {
    const unsigned char *const from = block->shared(at, bytes, "load");
    block->note_read(at, bytes);
    std::memcpy(to, from, bytes);
}

void write_shared(uint32_t at, const void *from, uint32_t bytes) {
    unsigned char *const to = block->shared(at, bytes, "store");
    block->note_write(at, bytes);
    std::memcpy(to, from, bytes);
}

void check_global(const void *at, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes)
        fail("access of " + std::to_string(bytes) + " bytes in global memory: misaligned");
}

void cp_async_16(uint32_t to, const void *from, bool valid) {
    if (valid)
        check_global(from, 16);
    block->start_copy({to, valid, from});
}

void cp_async_commit() {
    Thread &thread = block->thread();
    thread.groups.push_back(std::move(thread.open));
    thread.open.clear();
}

void cp_async_wait(int groups) {
    Thread &thread = block->thread();
    while (int(thread.groups.size()) > groups) {
        for (const Copy &copy : thread.groups.front())
            block->land(copy);
        thread.groups.pop_front();
    }
}

int64_t multiprocessors() { return multiprocessor_count; }
void set_multiprocessors(int64_t count) { multiprocessor_count = count; }

int bank_conflicts() { return worst_conflicts; }
void note_bank_conflicts(int ways) { worst_conflicts = std::max(worst_conflicts, ways); }

} // namespace mvit::emulation
