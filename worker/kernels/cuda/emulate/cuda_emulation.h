// CUDA kernels on a CPU (C++17, one operating system thread): enough of the language for the kernels of this folder, so
// that machines without a GPU can execute them and hold their results against others.
//
// Every thread of a block is a fibre. A block runs its fibres one after the other, each until it waits at a barrier or
// in a shuffle; blocks follow each other. What real hardware leaves undefined is an error here:
// - a barrier that not all threads of a block reach, a shuffle that not all lanes of a warp reach;
// - memory outside of a buffer: behind each, and behind shared memory, lies a page that may not be touched;
// - shared memory that is read before it is written holds NaN. (Static shared memory keeps what the last block left.)
// Threads and blocks may be run in any order: who gets other bytes in another has a race.
//
// Arithmetic is that of the device as the kernels are compiled there: nothing contracted, division, square root and
// fmaf rounded once, subnormal numbers kept. Elementary functions of libm may differ from the device's in the last
// bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__ static
#define __shared__ static
#define __forceinline__ inline
#define UNROLL
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::shared.start)

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

[[noreturn]] inline void fail(const std::string& what) {
    std::fprintf(
        stderr, "emulated kernel: %s (block %u %u %u, thread %u)\n", what.c_str(), blockIdx.x, blockIdx.y, blockIdx.z,
        threadIdx.x
    );
    std::exit(1);
}

// Memory that ends where a page begins that may not be touched. Filled with ones: NaN.
struct Guarded {
    static constexpr size_t PAGE = 4096;
    char *base = nullptr, *start = nullptr;
    size_t size = 0, mapped = 0;

    Guarded() = default;
    explicit Guarded(size_t bytes) : size(bytes) {
        mapped = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
        void* at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) fail("no memory");
        base = static_cast<char*>(at);
        if (mprotect(base + mapped - PAGE, PAGE, PROT_NONE) != 0) fail("no guard page");
        start = base + mapped - PAGE - bytes;
        poison();
    }
    void poison() { std::memset(start, 0xff, size); }
    void release() {
        if (base) munmap(base, mapped);
    }
};

inline Guarded shared;

enum class State { Ready, AtBarrier, AtShuffle, Done };

struct Fibre {
    ucontext_t context;
    jmp_buf place;
    bool started = false;
    State state = State::Ready;
    // What it shows to the other lanes.
    uint64_t shown = 0;
};

constexpr unsigned LANES = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 128 * 1024;

inline std::vector<Fibre> fibres;
// Of all threads; only what is used of it exists.
inline char* stacks = nullptr;
// Of each thread what it showed when its warp last met.
inline std::vector<uint64_t> seen;
inline jmp_buf scheduler;
inline unsigned current = 0;
inline const std::function<void()>* body = nullptr;

inline void fibre_main() {
    (*body)();
    fibres[current].state = State::Done;
    _longjmp(scheduler, 1);
}

// Gives control back to the scheduler until the state is Ready again.
[[gnu::noinline]] inline void wait(State state) {
    fibres[current].state = state;
    if (_setjmp(fibres[current].place) == 0) _longjmp(scheduler, 1);
}

[[gnu::noinline]] inline void resume(unsigned index) {
    current = index;
    threadIdx = {index, 0, 0};
    Fibre& fibre = fibres[index];
    if (_setjmp(scheduler) != 0) return;
    if (fibre.started) _longjmp(fibre.place, 1);
    fibre.started = true;
    setcontext(&fibre.context);
    fail("a thread did not start");
}

// Lets the warps go on whose lanes have all met. True if there was one.
inline bool release_warps() {
    bool any = false;
    for (unsigned first = 0; first < fibres.size(); first += LANES) {
        auto begin = fibres.begin() + first, end = begin + LANES;
        if (!std::all_of(begin, end, [](const Fibre& f) { return f.state == State::AtShuffle; })) continue;
        for (unsigned i = first; i < first + LANES; i++) {
            seen[i] = fibres[i].shown;
            fibres[i].state = State::Ready;
        }
        any = true;
    }
    return any;
}

inline bool all(State state) {
    return std::all_of(fibres.begin(), fibres.end(), [=](const Fibre& f) { return f.state == state; });
}

inline void run_block(const std::vector<unsigned>& order) {
    for (unsigned i = 0; i < fibres.size(); i++) {
        Fibre& fibre = fibres[i];
        fibre.started = false;
        fibre.state = State::Ready;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = stacks + i * STACK;
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, fibre_main, 0);
    }
    while (!all(State::Done)) {
        for (unsigned i : order) {
            if (fibres[i].state == State::Ready) resume(i);
        }
        if (release_warps() || all(State::Done)) continue;
        if (!all(State::AtBarrier)) fail("threads wait for others that do not come");
        for (Fibre& fibre : fibres) fibre.state = State::Ready;
    }
}

// A permutation of 0 to n - 1: ascending for 0, descending for 1, shuffled for others.
inline std::vector<unsigned> order_of(unsigned n, unsigned how) {
    std::vector<unsigned> order(n);
    for (unsigned i = 0; i < n; i++) order[i] = how == 1 ? n - 1 - i : i;
    if (how > 1) std::shuffle(order.begin(), order.end(), std::mt19937(how));
    return order;
}

inline void launch(const std::function<void()>& kernel, Dim3 grid, unsigned threads, size_t bytes, unsigned how) {
    if (threads == 0 || threads > MOST_THREADS || threads % LANES != 0) fail("a block must be 1 to 32 whole warps");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) fail("no such grid");
    if (bytes > 227 * 1024) fail("more shared memory than a block can have");
    body = &kernel;
    gridDim = grid, blockDim = {threads, 1, 1};
    fibres.resize(threads);
    seen.resize(threads);
    if (!stacks) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* at = mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (at == MAP_FAILED) fail("no memory for stacks");
        stacks = static_cast<char*>(at);
    }
    shared.release();
    shared = Guarded(bytes);
    std::vector<unsigned> order = order_of(threads, how);
    for (unsigned i : order_of(grid.x * grid.y * grid.z, how)) {
        blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        shared.poison();
        run_block(order);
    }
}

template <class To, class From>
To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &value, sizeof to);
    return to;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::State::AtBarrier); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
    if (mask != 0xffffffffu) emulation::fail("shuffles are of whole warps");
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    emulation::fibres[emulation::current].shown = word;
    emulation::wait(emulation::State::AtShuffle);
    std::memcpy(&value, &emulation::seen[emulation::current ^ unsigned(offset)], sizeof value);
    return value;
}

inline unsigned __float_as_uint(float x) { return emulation::bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulation::bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulation::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulation::bits<double>(x); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
