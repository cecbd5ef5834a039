// GELU, x Φ(x), and its slope: the formulas of ops/activation.py. TANH = 1 is the approximation, 0 the exact form.
//
// X is the type of x, y and dx, DY that of dy. The way back computes the slope again from x: that costs less than
// keeping it, one more write and one more read of an array that is four times as wide as the network.
//
// Even so the arithmetic takes almost as long as the memory. Hence the tail Φ(−|x|) = φ(x) M(t) of the formula, which
// has no branches and shares its exponential with the slope, and not erff(); and the short forms of division and e^x,
// whose errors are in the last two bits.

#define SQRT_2_OVER_PI 0.79788456f
#define ONE_OVER_SQRT_2_PI 0.39894228f

// Φ(x), and φ(x) = e^(−x²/2) / √(2π).
__device__ inline float normal_distribution(float x, float& density) {
    float t = __fdividef(3.16f, 3.16f + fabsf(x));
    float m = -0.3351519f;
    m = m * t + 1.3243915f;
    m = m * t - 0.78789856f;
    m = m * t + 0.86604849f;
    m = m * t + 0.16978242f;
    m = m * t + 0.01614218f;
    density = ONE_OVER_SQRT_2_PI * __expf(-0.5f * x * x);
    return x > 0 ? 1 - m * density : m * density;
}

__device__ inline float gelu_of(float x) {
    if (TANH) return 0.5f * x * (1 + tanhf(SQRT_2_OVER_PI * (x + 0.044715f * x * x * x)));
    float density;
    return x * normal_distribution(x, density);
}

__device__ inline float slope_of(float x) {
    if (TANH) {
        float th = tanhf(SQRT_2_OVER_PI * (x + 0.044715f * x * x * x));
        return 0.5f * (1 + th) + 0.5f * x * (1 - th * th) * SQRT_2_OVER_PI * (1 + 3 * 0.044715f * x * x);
    }
    float density, distribution = normal_distribution(x, density);
    return distribution + x * density;
}

extern "C" __global__ void gelu(const X* x, X* y, u32 groups, u32 tail) { map(x, y, groups, tail, gelu_of); }

// dx = dy ⊙ slope(x)
extern "C" __global__ void gelu_backward(const DY* dy, const X* x, X* dx, u32 groups, u32 tail) {
    map2(dy, x, dx, groups, tail, [](float v, float x) { return v * slope_of(x); });
}
