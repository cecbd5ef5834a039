// Random numbers by name: Philox4x32-10 of minivit/random.py, bit for bit.
//
// A number depends on its key, its sample and its place in the row, and on nothing that was drawn before. So every thread
// computes its four numbers alone, and a GPU draws what a CPU draws.

// out[r, 4b … 4b + 3] of (rows, width): a thread turns the counter (b, 0, sample) into four words, of which the 24 high
// bits are a number in [0, 1). The key is read from memory, or is (low, high) where `key` is a null pointer.
extern "C" __global__ void uniform(
    const u32* key, u32 low, u32 high, const long long* samples, float* out, int rows, int width) {
    u64 blocks = (width + 3) / 4, thread = (u64)blockIdx.x * blockDim.x + threadIdx.x, row = thread / blocks;
    if (row >= rows) return;
    u32 block = thread % blocks;
    u64 sample = samples[row];

    u32 c0 = block, c1 = 0, c2 = (u32)sample, c3 = (u32)(sample >> 32);
    u32 k0 = key ? key[0] : low, k1 = key ? key[1] : high;
    for (int round = 0; round < 10; round++) {
        u64 p0 = (u64)c0 * 0xD2511F53, p1 = (u64)c2 * 0xCD9E8D57;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (u32)p0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }

    u32 words[4] = {c0, c1, c2, c3};
    out += row * width + 4ull * block;
    for (int i = 0; i < 4; i++)
        if (4ull * block + i < width) out[i] = (words[i] >> 8) * 0x1p-24f;
}
