// Images (B, CHANNELS, HEIGHT, WIDTH) cut into patches (B, N, CHANNELS · PATCH_HEIGHT · PATCH_WIDTH), as ops/shape.py
// does, and put together again. A thread moves STEP neighbours of a row of a patch: four, or one where rows of patches
// are no multiple of four. Neighbouring threads have neighbouring numbers of the patches, and short pieces of rows of
// the images.
//
// X is the type of the images, Y that of the patches. Bytes are normalised on the way, with SCALES and SHIFTS of the
// channels: so a batch comes to the GPU, and is read there, as bytes.

#define COLUMNS (WIDTH / PATCH_WIDTH)  // of patches
#define IMAGE (CHANNELS * HEIGHT * WIDTH)

template <typename T> __device__ inline void load(const T* source, float v[STEP]) {
    if constexpr (STEP == 4) load4(source, v);
    else v[0] = to_float(source[0]);
}

template <typename T> __device__ inline void store(T* target, const float v[STEP]) {
    if constexpr (STEP == 4) store4(target, v);
    else target[0] = round_to<T>(v[0]);
}

#ifdef SCALES
__constant__ const float scales[] = {SCALES}, shifts[] = {SHIFTS};
// Rounded twice, as NumPy and CuPy do it: the compiler would make one instruction and one rounding of a · b + c.
__device__ inline float normalised(float v, int c) { return __fadd_rn(__fmul_rn(v, scales[c]), shifts[c]); }
#else
__device__ inline float normalised(float v, int c) { return v; }
#endif

// Where in an image number `at` of its patches lies: (row of patches, column, channel, y, x) → (channel, row, column).
__device__ inline u32 pixel(u32 at, u32& channel) {
    u32 x = at % PATCH_WIDTH, y = at / PATCH_WIDTH % PATCH_HEIGHT;
    channel = at / (PATCH_WIDTH * PATCH_HEIGHT) % CHANNELS;
    u32 patch = at / (PATCH_WIDTH * PATCH_HEIGHT * CHANNELS);
    u32 row = patch / COLUMNS * PATCH_HEIGHT + y, column = patch % COLUMNS * PATCH_WIDTH + x;
    return (channel * HEIGHT + row) * WIDTH + column;
}

// The number of this thread in an image; blockIdx.x is the number of the image.
__device__ inline u32 first_of_thread() { return (blockIdx.y * blockDim.x + threadIdx.x) * STEP; }

extern "C" __global__ void patchify(const X* images, Y* patches) {
    u32 at = first_of_thread(), channel;
    if (at >= IMAGE) return;
    u64 image = (u64)blockIdx.x * IMAGE;
    float v[STEP];
    load(images + image + pixel(at, channel), v);
    for (int i = 0; i < STEP; i++) v[i] = normalised(v[i], channel);
    store(patches + image + at, v);
}

extern "C" __global__ void unpatchify(const Y* patches, X* images) {
    u32 at = first_of_thread(), channel;
    if (at >= IMAGE) return;
    u64 image = (u64)blockIdx.x * IMAGE;
#ifndef SCALES  // bytes have no gradient
    float v[STEP];
    load(patches + image + at, v);
    store(images + image + pixel(at, channel), v);
#endif
}
