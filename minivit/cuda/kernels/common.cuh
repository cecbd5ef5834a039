// What all kernels share. It is put before each of them, so no kernel needs a header file of CUDA.
//
// A kernel says what one thread does. 32 threads are a warp, which runs in step and can exchange registers (shuffle);
// some warps are a block, which has shared memory and barriers; many blocks are the grid. Types and sizes that a kernel
// names in capitals (X, WIDTH) are constants of the compilation: see launch.py.
//
// The arrays are far larger than any cache, so these kernels take as long as their reads and writes. Hence: each array
// is read once, four neighbouring elements at a time (16 bytes of float, 8 of bf16), and what follows stays in registers.

typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define EVERYONE 0xffffffffu  // all lanes of a warp take part
#define NEGATIVE_INFINITY __uint_as_float(0xff800000u)
#define NOT_A_NUMBER __uint_as_float(0x7fffffffu)

// bfloat16 is the upper half of a float: 8 bits of exponent, 7 of mantissa. Arithmetic is done in float.
struct bf16 {
    unsigned short bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(unsigned char x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <typename T> __device__ inline T round_to(float x);
template <> __device__ inline float round_to<float>(float x) { return x; }
template <> __device__ inline bf16 round_to<bf16>(float x) {  // to the nearest, to even in the middle; NaN stays NaN
#ifdef ON_A_CPU
    u32 bits = __float_as_uint(x);
    return bf16{(unsigned short)(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#else
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));  // the same in one instruction
    return y;
#endif
}

// Four neighbours, as one read or write.
template <typename T> struct alignas(4 * sizeof(T)) Four {
    T of[4];
};

template <typename T> __device__ inline void load4(const T* source, float v[4]) {
    Four<T> four = *(const Four<T>*)source;
    for (int i = 0; i < 4; i++) v[i] = to_float(four.of[i]);
}

template <typename T> __device__ inline void store4(T* target, const float v[4]) {
    Four<T> four;
    for (int i = 0; i < 4; i++) four.of[i] = round_to<T>(v[i]);
    *(Four<T>*)target = four;
}

// Arrays without rows: `groups` of four neighbours, and a `tail` of up to three numbers. A thread takes AHEAD groups, at
// the distance of the block. It reads them all before it computes: the memory answers after hundreds of cycles, and is
// only busy if many reads are under way.
#define AHEAD 4
#define EACH_GROUP(k, group) \
    _Pragma("unroll") for (int k = 0; k < AHEAD; k++) \
        if (u32 group = (blockIdx.x * AHEAD + k) * blockDim.x + threadIdx.x; group < groups)

// y[i] = f(x[i]) for all i.
template <typename In, typename Out, typename Function>
__device__ inline void map(const In* x, Out* y, u32 groups, u32 tail, Function f) {
    float v[AHEAD][4];
    EACH_GROUP(k, group) load4(x + 4ull * group, v[k]);
    EACH_GROUP(k, group) {
        for (int i = 0; i < 4; i++) v[k][i] = f(v[k][i]);
        store4(y + 4ull * group, v[k]);
    }
    if (blockIdx.x == 0 && threadIdx.x < tail) {
        u64 i = 4ull * groups + threadIdx.x;
        y[i] = round_to<Out>(f(to_float(x[i])));
    }
}

// z[i] = f(x[i], y[i]) for all i.
template <typename In, typename In2, typename Out, typename Function>
__device__ inline void map2(const In* x, const In2* y, Out* z, u32 groups, u32 tail, Function f) {
    float v[AHEAD][4], w[AHEAD][4];
    EACH_GROUP(k, group) {
        load4(x + 4ull * group, v[k]);
        load4(y + 4ull * group, w[k]);
    }
    EACH_GROUP(k, group) {
        for (int i = 0; i < 4; i++) v[k][i] = f(v[k][i], w[k][i]);
        store4(z + 4ull * group, v[k]);
    }
    if (blockIdx.x == 0 && threadIdx.x < tail) {
        u64 i = 4ull * groups + threadIdx.x;
        z[i] = round_to<Out>(f(to_float(x[i]), to_float(y[i])));
    }
}

// The sum (maximum) over the lanes of a warp, given to all: pairs at distance 16, then 8, 4, 2, 1. Always the same order.
__device__ inline float warp_sum(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(EVERYONE, x, distance);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(EVERYONE, x, distance));
    return x;
}

// The sum over all threads of a block of at most 1,024, given to all. `scratch` is shared memory for 32 floats.
__device__ inline float block_sum(float x, float* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = (blockDim.x + WARP - 1) / WARP;
    x = warp_sum(x);
    __syncthreads();  // scratch may still be read, of an earlier sum
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0);
}

__device__ inline float block_max(float x, float* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = (blockDim.x + WARP - 1) / WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? scratch[lane] : NEGATIVE_INFINITY);
}

// Rows of WIDTH numbers, of any length: TEAM threads, a warp or a whole block, take a row; thread t has its numbers t,
// t + TEAM, …, TEAM_OWN at most. A team is through, or returns early, as a whole.
#define TEAM_BLOCK (TEAM > 128 ? TEAM : 128)  // threads of a block
#define TEAM_OWN ((WIDTH + TEAM - 1) / TEAM)
#define ROW_OF_TEAM (blockIdx.x * (TEAM_BLOCK / TEAM) + threadIdx.x / TEAM)
#define EACH_OF_TEAM(k, c) \
    _Pragma("unroll") for (int k = 0; k < TEAM_OWN; k++) \
        if (int c = threadIdx.x % TEAM + k * TEAM; c < WIDTH)

template <int Team> __device__ inline float team_sum(float x) {
    if constexpr (Team == WARP) return warp_sum(x);
    __shared__ float scratch[WARP];
    return block_sum(x, scratch);
}

template <int Team> __device__ inline float team_max(float x) {
    if constexpr (Team == WARP) return warp_max(x);
    __shared__ float scratch[WARP];
    return block_max(x, scratch);
}
