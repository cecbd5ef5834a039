// A GPU of one core: enough of CUDA to run small kernels on a CPU, one thread at a time.
//
// Each thread of a block is a fiber, a stack of its own. A fiber runs until it waits for the others, at a barrier or in
// a shuffle; then the next one runs. Blocks run one after another. Shared memory is a static variable.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __constant__ static
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define ON_A_CPU

struct dim3 {
    unsigned x, y, z;
};
struct Fiber {
    ucontext_t context;
    bool done;
    uint64_t mailbox;  // what this lane shows to the others of its warp
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;
static std::vector<Fiber> fibers;
static unsigned running;  // number of the fiber that runs
static ucontext_t scheduler;
static unsigned waiting, generation, alive;  // at the barrier of the block
static std::vector<char> dynamic_shared;

// Let every other fiber run up to where it waits.
static inline void others() {
    dim3 own = threadIdx;
    unsigned number = running;
    swapcontext(&fibers[number].context, &scheduler);
    running = number;
    threadIdx = own;
}

static inline void __syncthreads() {
    unsigned mine = generation;
    waiting++;
    while (mine == generation) {
        if (waiting >= alive) {
            waiting = 0;
            generation++;
        } else
            others();
    }
}

// Lanes of a warp go through the same exchanges, so one turn of the others is enough to see what they show.
static inline void __syncwarp(unsigned mask = ~0u) { others(); }

template <typename T> static inline T exchanged(T x, unsigned lane) {
    unsigned first = running / 32 * 32;
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    fibers[running].mailbox = bits;
    others();
    uint64_t seen = fibers[first + lane % 32].mailbox;
    others();
    memcpy(&x, &seen, sizeof x);
    return x;
}
template <typename T> static inline T __shfl_xor_sync(unsigned, T x, int distance) {
    return exchanged(x, (running % 32) ^ distance);
}
template <typename T> static inline T __shfl_sync(unsigned, T x, int lane) { return exchanged(x, lane); }
template <typename T> static inline T __shfl_down_sync(unsigned, T x, int distance) {
    unsigned lane = running % 32;
    return exchanged(x, lane + distance < 32 ? lane + distance : lane);
}

static inline uint32_t __float_as_uint(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline float __uint_as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint64_t)a * b >> 32; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
#define __expf expf  // the C library has a function of that name
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fadd_rn(float x, float y) { return x + y; }

// The instructions of kernels/attention.cu. In those of a whole warp each lane shows its registers, and takes from the
// others' what "PTX ISA" says, under "Matrix fragments for mma.m16n8k16" and "ldmatrix".
struct bf16;
static uint64_t shown[32][32][6];  // of each warp, lane and register

static inline uint64_t (*show(const uint32_t* registers, int count, int first = 0))[6] {
    uint64_t(*warp)[6] = shown[running / 32];
    for (int i = 0; i < count; i++) warp[running % 32][first + i] = registers[i];
    return warp;
}
static inline float half_of(uint32_t pair, int which) { return __uint_as_float(pair >> 16 * which << 16); }
static inline uint32_t bf16_bits(float x) {
    uint32_t bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline bf16* shared_memory() { return (bf16*)dynamic_shared.data(); }
static inline uint32_t pack(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

static inline void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    show(a, 4);
    uint64_t(*warp)[6] = show(b, 2, 4);
    others();
    int lane = running % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            uint32_t left = warp[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            uint32_t right = warp[column * 4 + k % 8 / 2][4 + k / 8];
            c[i] += half_of(left, k % 2) * half_of(right, k % 2);
        }
    }
    others();
}

static inline void load_8_by_8(uint32_t m[4], const bf16* row, bool transposed) {
    if ((uintptr_t)row % 16) abort();  // a GPU would report a misaligned address
    uint64_t(*warp)[6] = shown[running / 32];
    warp[running % 32][0] = (uint64_t)row;
    others();
    int lane = running % 32;
    for (int i = 0; i < 4; i++) {
        m[i] = 0;
        for (int half = 0; half < 2; half++) {
            int along = lane / 4, across = lane % 4 * 2 + half;
            const uint16_t* from = (const uint16_t*)warp[8 * i + (transposed ? across : along)][0];
            m[i] |= (uint32_t)from[transposed ? along : across] << 16 * half;
        }
    }
    others();
}
static inline void load_matrices(uint32_t m[4], const bf16* row) { load_8_by_8(m, row, false); }
static inline void load_transposed_matrices(uint32_t m[4], const bf16* row) { load_8_by_8(m, row, true); }

// One launch: `argv` points to the arguments, as a driver is given them.
template <typename... A> struct Launch {
    static void (*kernel)(A...);
    static void** argv;
    template <size_t... I> static void call(std::index_sequence<I...>) { kernel(*(A*)argv[I]...); }
    static void fiber() {
        call(std::index_sequence_for<A...>{});
        fibers[running].done = true;
        alive--;
        swapcontext(&fibers[running].context, &scheduler);
    }
};
template <typename... A> void (*Launch<A...>::kernel)(A...);
template <typename... A> void** Launch<A...>::argv;

template <typename... A> static void launch(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, void** argv) {
    const size_t stack = 256 * 1024;
    unsigned threads = block.x * block.y * block.z;
    Launch<A...>::kernel = kernel;
    Launch<A...>::argv = argv;
    static char* stacks = (char*)malloc(stack * 1024);  // kept from launch to launch, and never cleared: that took longest
    fibers.resize(threads);
    gridDim = grid;
    blockDim = block;
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
                dynamic_shared.assign(shared + 16, (char)0xff);  // NaN: what is read must have been written
                waiting = 0;
                alive = threads;
                for (unsigned t = 0; t < threads; t++) {
                    getcontext(&fibers[t].context);
                    fibers[t].done = false;
                    fibers[t].context.uc_stack.ss_sp = stacks + stack * t;
                    fibers[t].context.uc_stack.ss_size = stack;
                    fibers[t].context.uc_link = &scheduler;
                    makecontext(&fibers[t].context, (void (*)())Launch<A...>::fiber, 0);
                }
                while (alive)
                    for (unsigned t = 0; t < threads; t++) {
                        if (fibers[t].done) continue;
                        running = t;
                        threadIdx = {t % block.x, t / block.x % block.y, t / block.x / block.y};
                        swapcontext(&scheduler, &fibers[t].context);
                    }
            }
}
