// Sums over the rows of an array (ROWS, WIDTH), in a fixed order: the second stage of every gradient of a bias or a gain.

// sums[p, c] = Σ x[r, c] over the rows r = p, p + P, … of part p, P = gridDim.y. A block takes 32 columns: lane c of
// its warps reads column c, each warp every warps-th row of the part; the warps' sums are added in shared memory.
// With one part this is the sum over all rows; a tall array is summed into some parts first, and then these into one.
extern "C" __global__ void column_sums(const X* x, float* sums, int rows, int width) {
    __shared__ float of_warp[32][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int column = blockIdx.x * WARP + lane;
    float sum = 0;
    if (column < width)
        for (int row = blockIdx.y + warp * gridDim.y; row < rows; row += warps * gridDim.y)
            sum += to_float(x[(u64)row * width + column]);
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
        for (int w = 1; w < warps; w++) sum += of_warp[w][lane];
        sums[(u64)blockIdx.y * width + column] = sum;
    }
}
