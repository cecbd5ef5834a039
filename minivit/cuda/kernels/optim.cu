// One step of an optimizer, or of a moving average, over a flat block of parameters: the formulas of minivit/optim, in one
// pass. A thread takes four neighbours; n is a multiple of four.
//
// What changes from step to step is read from memory (`numbers`, `scale`), not given as an argument: the arguments of a
// kernel that was recorded in a CUDA graph stay as they were.

__device__ inline u32 first_of_four() { return 4 * (blockIdx.x * blockDim.x + threadIdx.x); }

// What the gradient is multiplied by; 0 (or NaN) means: make no step.
__device__ inline float given(const float* scale) { return scale ? *scale : 1; }

// p ← (1 − ηλ) p,  m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  p ← p − η√c₂/c₁ · m / (√v + ε√c₂)
extern "C" __global__ void adamw(
    const float* numbers, const float* scale, float* p, const float* g, float* m, float* v, int n) {
    u32 first = first_of_four();
    float s = given(scale);
    if (first >= n || !(s > 0)) return;
    float decay = numbers[0], beta1 = numbers[1], rest1 = numbers[2], beta2 = numbers[3], rest2 = numbers[4];
    float eps = numbers[5], rate = numbers[6];

    float pv[4], gv[4], mv[4], vv[4];
    load4(p + first, pv);
    load4(g + first, gv);
    load4(m + first, mv);
    load4(v + first, vv);
    for (int i = 0; i < 4; i++) {
        float gradient = s * gv[i];
        mv[i] = beta1 * mv[i] + rest1 * gradient;
        vv[i] = beta2 * vv[i] + rest2 * (gradient * gradient);
        pv[i] = decay * pv[i] - rate * (mv[i] / (sqrtf(vv[i]) + eps));
    }
    store4(p + first, pv);
    store4(m + first, mv);
    store4(v + first, vv);
}

// g ← g + λ p,  b ← μ b + g,  p ← p − η₁ g − η₂ b
extern "C" __global__ void sgd(const float* numbers, const float* scale, float* p, const float* g, float* b, int n) {
    u32 first = first_of_four();
    float s = given(scale);
    if (first >= n || !(s > 0)) return;
    float decay = numbers[0], momentum = numbers[1], rate_of_g = numbers[2], rate_of_b = numbers[3];

    float pv[4], gv[4], bv[4];
    load4(p + first, pv);
    load4(g + first, gv);
    load4(b + first, bv);
    for (int i = 0; i < 4; i++) {
        float gradient = s * gv[i] + decay * pv[i];
        bv[i] = momentum * bv[i] + gradient;
        pv[i] = pv[i] - rate_of_g * gradient - rate_of_b * bv[i];
    }
    store4(p + first, pv);
    store4(b + first, bv);
}

// a ← d a + (1 − d) p. Both factors come from Python, which subtracts in double precision.
extern "C" __global__ void move_average(float* average, const float* p, float decay, float rest, int n) {
    u32 first = first_of_four();
    if (first >= n) return;
    float a[4], pv[4];
    load4(average + first, a);
    load4(p + first, pv);
    for (int i = 0; i < 4; i++) a[i] = decay * a[i] + rest * pv[i];
    store4(average + first, a);
}

// row[0 … n − 1] ← x0, x1, …: one thread writes up to eight numbers, which travel as arguments of the launch. So the host
// neither waits, as it might for a copy, nor has to keep them until they have arrived.
extern "C" __global__ void write_numbers(
    float* row, float x0, float x1, float x2, float x3, float x4, float x5, float x6, float x7, int n) {
    float x[8] = {x0, x1, x2, x3, x4, x5, x6, x7};
    for (int i = 0; i < 8; i++)
        if (i < n) row[i] = x[i];
}
