// Self-attention of whole rows: S = scale Q Kᵀ, P = softmax(S), O = P V as in ops/attention.py, for bfloat16.
//
// A block takes one head of one image. A warp of it takes 16 queries at a time and all TOKENS ≤ 256 keys. Their scores,
// 16 rows of S, are in the registers of the warp, so the softmax is the plain one, and neither S nor P is in memory at
// any time. (FlashAttention, arXiv:2205.14135, cuts rows of any length into pieces, and corrects the softmax from piece
// to piece.) Kept for the way back is one number a query, its log-sum-exp L: P = exp(S − L) is computed again there.
//
// qkv is (images, TOKENS, 3, heads, HEAD), O (images, TOKENS, heads, HEAD), L (images, heads, TOKENS), HEAD 32 or 64.
// Exponentials and logarithms are to base 2, which is what the GPU has: exp(s) = 2^(s log₂e), and L is a log₂.

#define TILES ((TOKENS + 15) / 16)  // of 16 tokens: the last may reach past them, where everything is made zero
#define STEPS (HEAD / 16)           // of 16 channels
#define ROW (HEAD + 8)              // from row to row in shared memory, which serves 32 banks of 4 bytes at a time:
                                    // thanks to the 8 more, 16 bytes of each of 8 rows lie in 32 different banks
#define THREADS (WARPS * WARP)
#define BLOCKS (TILES > 13 ? 2 : 3)  // that a multiprocessor shall have room for at a time, which limits the registers
#define LOG2E 1.4426950408889634f

// The tensor cores multiply small matrices that are spread over the registers of a warp. Which lane has what of them is
// told in NVIDIA's manual of the instructions, "PTX ISA", under "Matrix fragments for mma.m16n8k16". With g = lane / 4
// and t = lane % 4 a lane has
//
//   of the left operand  a (16, 16)   rows g, g + 8, columns 2t, 2t + 1, 2t + 8, 2t + 9:   4 registers of two bf16, at
//                                     (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
//   of the right operand b (16, 8)    rows 2t, 2t + 1, 2t + 8, 2t + 9, column g:           2 registers
//   of the result        c (16, 8)    rows g, g + 8, columns 2t, 2t + 1:                   4 floats, row g first
//
// So two results side by side, (16, 16), lie as a left operand does: S becomes P without an exchange between lanes.
__device__ inline int own_row() { return threadIdx.x % WARP / 4; }         // g
__device__ inline int own_column() { return threadIdx.x % WARP % 4 * 2; }  // 2t

#ifndef ON_A_CPU  // tests/cuda/shim.h has these five in C++

// The shared memory of the block, as much as the launch asked for.
__device__ inline bf16* shared_memory() {
    extern __shared__ Four<float> memory[];  // a type of 16 bytes: so it is aligned
    return (bf16*)memory;
}

// Two floats, rounded, in one register.
__device__ inline u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// c += a b.
__device__ inline void mma(float c[4], const u32 a[4], const u32 b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices (8, 8) from shared memory. Lanes 0 to 7 say where the rows of the first are, lanes 8 to 15 those of the
// second, …; register i of a lane gets row g, columns 2t and 2t + 1 of matrix i.
__device__ inline void load_matrices(u32 m[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// The same, of the transposed matrices: column g, rows 2t and 2t + 1.
__device__ inline void load_transposed_matrices(u32 m[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
#endif

// One head's rows (TOKENS, HEAD), `stride` apart, to shared memory (16 TILES, ROW), 16 bytes a thread at a time.
__device__ inline void fetch(bf16* target, const bf16* rows, int stride) {
    const int pieces = HEAD / 8, all = 16 * TILES * pieces;
#pragma unroll
    for (int first = 0; first < all; first += THREADS) {
        int i = first + threadIdx.x, row = i / pieces, column = i % pieces * 8;
        Four<float> piece = {};
        if (row < TOKENS) piece = *(const Four<float>*)(rows + row * stride + column);
        if (i < all) *(Four<float>*)(target + row * ROW + column) = piece;
    }
}

// A left operand, 16 rows and columns, straight from global memory: no other warp needs these rows.
__device__ inline void load_left(u32 a[4], const bf16* rows, int stride, int first) {
    for (int i = 0; i < 4; i++) {
        int row = first + own_row() + i % 2 * 8, column = own_column() + i / 2 * 8;
        a[i] = row < TOKENS ? *(const u32*)(rows + row * stride + column) : 0;
    }
}

// A left operand of two results side by side, rounded.
__device__ inline void round_left(u32 a[4], const float c[2][4]) {
    for (int i = 0; i < 4; i++) a[i] = pack(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]);
}

// c (16, 16) += a yᵀ with y (16, 16) in shared memory.
__device__ inline void times_transposed(float c[2][4], const u32 a[4], const bf16* y) {
    int lane = threadIdx.x % WARP;
    u32 b[4];
    load_matrices(b, y + (lane / 16 * 8 + lane % 8) * ROW + lane / 8 % 2 * 8);
    mma(c[0], a, b);
    mma(c[1], a, b + 2);
}

// c (16, HEAD) += a y with y (16, HEAD) in shared memory.
__device__ inline void times(float c[2 * STEPS][4], const u32 a[4], const bf16* y) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u32 b[4];
        load_transposed_matrices(b, y + lane % 16 * ROW + lane / 16 * 8 + 16 * step);
        mma(c[2 * step], a, b);
        mma(c[2 * step + 1], a, b + 2);
    }
}

// 16 rows of a result, (16, HEAD), times a factor for rows g and another for rows g + 8, to global memory.
__device__ inline void store_rows(
    bf16* rows, int stride, int first, const float c[2 * STEPS][4], const float factor[2]) {
    for (int half = 0; half < 2; half++) {
        int row = first + own_row() + 8 * half;
        if (row < TOKENS)
            for (int n = 0; n < 2 * STEPS; n++)
                *(u32*)(rows + row * stride + 8 * n + own_column()) =
                    pack(c[n][2 * half] * factor[half], c[n][2 * half + 1] * factor[half]);
    }
}

// What two pairs of bf16 add to the inner product of their rows.
__device__ inline float product_of_pairs(u32 x, u32 y) {
    float low = __uint_as_float(x << 16) * __uint_as_float(y << 16);  // a float is a bf16 and 16 bits more
    return low + __uint_as_float(x & 0xffff0000) * __uint_as_float(y & 0xffff0000);
}

// The sum (maximum) of a row, of which four neighbouring lanes have the parts.
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(EVERYONE, x, 1);
    return x + __shfl_xor_sync(EVERYONE, x, 2);
}

__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(EVERYONE, x, 1));
    return fmaxf(x, __shfl_xor_sync(EVERYONE, x, 2));
}

// Forward. The division by the sums of the rows comes last: O has fewer columns than P.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention(const bf16* qkv, bf16* o, float* logsumexp, float scale, int heads) {
    int width = heads * HEAD, image = blockIdx.x / heads, head = blockIdx.x % heads;
    const bf16* q = qkv + (u64)image * TOKENS * 3 * width + head * HEAD;
    o += (u64)image * TOKENS * width + head * HEAD;
    logsumexp += (u64)blockIdx.x * TOKENS;

    bf16 *k = shared_memory(), *v = k + 16 * TILES * ROW;
    fetch(k, q + width, 3 * width);
    fetch(v, q + 2 * width, 3 * width);
    __syncthreads();

    for (int tile = threadIdx.x / WARP; tile < TILES; tile += WARPS) {
        float s[TILES][2][4] = {};  // s[j] is (16, 16): against the keys of tile j
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 own[4];
            load_left(own, q + 16 * step, 3 * width, 16 * tile);
            for (int j = 0; j < TILES; j++) times_transposed(s[j], own, k + 16 * j * ROW + 16 * step);
        }

        float top[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {};  // of rows g and g + 8
        for (int j = 0; j < TILES; j++)
            for (int n = 0; n < 2; n++)
                for (int i = 0; i < 4; i++) {
                    bool is_key = 16 * j + 8 * n + own_column() + i % 2 < TOKENS;
                    s[j][n][i] = is_key ? s[j][n][i] * (scale * LOG2E) : NEGATIVE_INFINITY;  // weight 0
                    top[i / 2] = fmaxf(top[i / 2], s[j][n][i]);
                }
        for (int half = 0; half < 2; half++) top[half] = row_max(top[half]);
        u32 p[TILES][4];
        for (int j = 0; j < TILES; j++) {
            for (int n = 0; n < 2; n++)
                for (int i = 0; i < 4; i++) {
                    s[j][n][i] = exp2f(s[j][n][i] - top[i / 2]);
                    sum[i / 2] += s[j][n][i];
                }
            round_left(p[j], s[j]);
        }

        float out[2 * STEPS][4] = {};
        for (int j = 0; j < TILES; j++) times(out, p[j], v + 16 * j * ROW);
        for (int half = 0; half < 2; half++) {
            float total = row_sum(sum[half]);
            int row = 16 * tile + own_row() + 8 * half;
            if (own_column() == 0 && row < TOKENS) logsumexp[row] = top[half] + log2f(total);
            sum[half] = 1 / total;
        }
        store_rows(o, width, 16 * tile, out, sum);
    }
}

// Backward, first half: dQ = scale dS K with dS = P ⊙ (dP − D), dP = dO Vᵀ and D = rowsum(dO ⊙ O), kept for the second.
// Again a warp takes 16 queries. P and dS are needed once, so they are made tile by tile.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_backward_queries(
    const bf16* qkv, const bf16* o, const bf16* d_o, const float* logsumexp, float* d, bf16* dqkv, float scale,
    int heads) {
    int width = heads * HEAD, image = blockIdx.x / heads, head = blockIdx.x % heads;
    const bf16* q = qkv + (u64)image * TOKENS * 3 * width + head * HEAD;
    bf16* dq = dqkv + (q - qkv);
    o += (u64)image * TOKENS * width + head * HEAD;
    d_o += (u64)image * TOKENS * width + head * HEAD;
    logsumexp += (u64)blockIdx.x * TOKENS;
    d += (u64)blockIdx.x * TOKENS;

    bf16 *k = shared_memory(), *v = k + 16 * TILES * ROW;
    fetch(k, q + width, 3 * width);
    fetch(v, q + 2 * width, 3 * width);
    __syncthreads();

    for (int tile = threadIdx.x / WARP; tile < TILES; tile += WARPS) {
        u32 own_q[STEPS][4], own_do[STEPS][4];
        float own_l[2] = {}, own_d[2] = {};
        for (int step = 0; step < STEPS; step++) {
            load_left(own_q[step], q + 16 * step, 3 * width, 16 * tile);
            load_left(own_do[step], d_o + 16 * step, width, 16 * tile);
            u32 own_o[4];
            load_left(own_o, o + 16 * step, width, 16 * tile);
            for (int i = 0; i < 4; i++) own_d[i % 2] += product_of_pairs(own_do[step][i], own_o[i]);
        }
        for (int half = 0; half < 2; half++) {
            int row = 16 * tile + own_row() + 8 * half;
            own_d[half] = row_sum(own_d[half]);
            if (row < TOKENS) own_l[half] = logsumexp[row];
            if (own_column() == 0 && row < TOKENS) d[row] = own_d[half];
        }

        float out[2 * STEPS][4] = {};
#pragma unroll 1  // as it stands: copies of it would need more registers than there are
        for (int j = 0; j < TILES; j++) {
            float s[2][4] = {}, dp[2][4] = {};
            for (int step = 0; step < STEPS; step++) {
                times_transposed(s, own_q[step], k + 16 * j * ROW + 16 * step);
                times_transposed(dp, own_do[step], v + 16 * j * ROW + 16 * step);
            }
            for (int n = 0; n < 2; n++)
                for (int i = 0; i < 4; i++) {
                    bool is_key = 16 * j + 8 * n + own_column() + i % 2 < TOKENS;
                    float p = is_key ? exp2f(s[n][i] * (scale * LOG2E) - own_l[i / 2]) : 0;
                    s[n][i] = p * (dp[n][i] - own_d[i / 2]);
                }
            u32 ds[4];
            round_left(ds, s);
            times(out, ds, k + 16 * j * ROW);
        }
        const float scales[2] = {scale, scale};
        store_rows(dq, 3 * width, 16 * tile, out, scales);
    }
}

// Backward, second half: dV = Pᵀ dO and dK = scale dSᵀ Q. Now a warp takes 16 keys, and everything is transposed: the
// rows of Sᵀ = K Qᵀ and dPᵀ = V dOᵀ belong to keys, and the columns, with their L and D, to queries. P and dP are made
// a second time here, so that no sum goes over warps: it would need atomic additions, whose order is left to chance.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_backward_keys(
    const bf16* qkv, const bf16* d_o, const float* logsumexp, const float* d, bf16* dqkv, float scale, int heads) {
    int width = heads * HEAD, image = blockIdx.x / heads, head = blockIdx.x % heads;
    const bf16 *rows = qkv + (u64)image * TOKENS * 3 * width + head * HEAD, *k = rows + width, *v = k + width;
    bf16 *dk = dqkv + (k - qkv), *dv = dk + width;
    d_o += (u64)image * TOKENS * width + head * HEAD;

    bf16 *q = shared_memory(), *all_do = q + 16 * TILES * ROW;
    float *all_l = (float*)(all_do + 16 * TILES * ROW), *all_d = all_l + 16 * TILES;
    fetch(q, rows, 3 * width);
    fetch(all_do, d_o, width);
    for (int row = threadIdx.x; row < 16 * TILES; row += THREADS) {
        all_l[row] = row < TOKENS ? logsumexp[(u64)blockIdx.x * TOKENS + row] : 0;
        all_d[row] = row < TOKENS ? d[(u64)blockIdx.x * TOKENS + row] : 0;
    }
    __syncthreads();

    for (int tile = threadIdx.x / WARP; tile < TILES; tile += WARPS) {
        u32 own_k[STEPS][4], own_v[STEPS][4];
        for (int step = 0; step < STEPS; step++) {
            load_left(own_k[step], k + 16 * step, 3 * width, 16 * tile);
            load_left(own_v[step], v + 16 * step, 3 * width, 16 * tile);
        }

        float out_k[2 * STEPS][4] = {}, out_v[2 * STEPS][4] = {};
#pragma unroll 1
        for (int j = 0; j < TILES; j++) {
            float p[2][4] = {}, ds[2][4] = {};
            for (int step = 0; step < STEPS; step++) {
                times_transposed(p, own_k[step], q + 16 * j * ROW + 16 * step);
                times_transposed(ds, own_v[step], all_do + 16 * j * ROW + 16 * step);
            }
            for (int n = 0; n < 2; n++)
                for (int i = 0; i < 4; i++) {
                    int query = 16 * j + 8 * n + own_column() + i % 2;  // past the tokens all is zero
                    p[n][i] = exp2f(p[n][i] * (scale * LOG2E) - all_l[query]);
                    ds[n][i] = p[n][i] * (ds[n][i] - all_d[query]);
                }
            u32 left[4];
            round_left(left, p);
            times(out_v, left, all_do + 16 * j * ROW);
            round_left(left, ds);
            times(out_k, left, q + 16 * j * ROW);
        }
        const float scales[2] = {scale, scale}, ones[2] = {1, 1};
        store_rows(dk, 3 * width, 16 * tile, out_k, scales);
        store_rows(dv, 3 * width, 16 * tile, out_v, ones);
    }
}
