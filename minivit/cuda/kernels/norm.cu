// The length of a vector (n,), and what clipping multiplies it by: norm_and_scale in minivit/optim/clip.py.
//
// A sum over hundreds of millions of numbers takes two kernels: a block cannot wait for the others, but a kernel waits for
// the one before it. How the work is cut depends on n alone, and each sum has its order: the same bits on every GPU.

// parts[b] = Σ x² over the groups of four neighbours b · 256 + t, and on at the distance of the grid.
extern "C" __global__ void squares(const float* x, float* parts, int n) {
    __shared__ float scratch[WARP];
    float sum = 0;
    for (u64 i = 4ull * (blockIdx.x * blockDim.x + threadIdx.x); i < n; i += 4ull * gridDim.x * blockDim.x) {
        float v[4];
        load4(x + i, v);
        sum += (v[0] * v[0] + v[1] * v[1]) + (v[2] * v[2] + v[3] * v[3]);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// result[0] = norm = √Σ parts; result[1] = min(1, max_norm / (norm + 1e-6)), or 0 where the norm is not finite. One block.
extern "C" __global__ void norm_and_scale(const float* parts, float* result, float max_norm, int count) {
    __shared__ float scratch[WARP];
    float sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
    float norm = sqrtf(block_sum(sum, scratch));
    if (threadIdx.x == 0) {
        result[0] = norm;
        result[1] = norm < -NEGATIVE_INFINITY ? fminf(max_norm / (norm + 1e-6f), 1) : 0;  // NaN is not smaller either
    }
}
