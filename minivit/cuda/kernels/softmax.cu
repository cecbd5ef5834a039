// Softmax and its logarithm over rows (ROWS, WIDTH), and the ways back: the formulas of ops/activation.py. TEAM threads
// have a row in their registers between the passes over it. Rows have any length (the attention to 197 tokens, say), so
// they start anywhere in memory, and are read number by number.
//
// X is the type of x and dx, Y that of y, DY that of dy. In between all is float.

// v = s − max s, with s = scale · x of this thread's part of a row; returns Σ e^v over the row.
__device__ inline float centred(const X* x, float scale, float v[TEAM_OWN]) {
    float most = NEGATIVE_INFINITY, sum = 0;
    EACH_OF_TEAM(k, c) {
        v[k] = scale * to_float(x[c]);
        most = fmaxf(most, v[k]);
    }
    most = team_max<TEAM>(most);
    EACH_OF_TEAM(k, c) {
        v[k] -= most;
        sum += expf(v[k]);
    }
    return team_sum<TEAM>(sum);
}

// y = softmax(scale · x)
extern "C" __global__ void __launch_bounds__(TEAM_BLOCK) softmax(const X* x, Y* y, float scale, int rows) {
    int row = ROW_OF_TEAM;
    if (row >= rows) return;  // a whole team returns
    float v[TEAM_OWN], r = 1 / centred(x + (u64)row * WIDTH, scale, v);
    y += (u64)row * WIDTH;
    EACH_OF_TEAM(k, c) y[c] = round_to<Y>(expf(v[k]) * r);
}

// dx = scale · y ⊙ (dy − Σ dy ⊙ y)
extern "C" __global__ void __launch_bounds__(TEAM_BLOCK)
    softmax_backward(const Y* y, const DY* dy, X* dx, float scale, int rows) {
    int row = ROW_OF_TEAM;
    if (row >= rows) return;
    y += (u64)row * WIDTH;
    dy += (u64)row * WIDTH;
    dx += (u64)row * WIDTH;
    float p[TEAM_OWN], g[TEAM_OWN], sum = 0;
    EACH_OF_TEAM(k, c) {
        p[k] = to_float(y[c]);
        g[k] = to_float(dy[c]);
        sum += p[k] * g[k];
    }
    sum = team_sum<TEAM>(sum);
    EACH_OF_TEAM(k, c) dx[c] = round_to<X>(scale * p[k] * (g[k] - sum));
}

// y = x − max x − ln Σ e^(x − max x)
extern "C" __global__ void __launch_bounds__(TEAM_BLOCK) log_softmax(const X* x, Y* y, int rows) {
    int row = ROW_OF_TEAM;
    if (row >= rows) return;
    float v[TEAM_OWN], log_sum = logf(centred(x + (u64)row * WIDTH, 1, v));
    y += (u64)row * WIDTH;
    EACH_OF_TEAM(k, c) y[c] = round_to<Y>(v[k] - log_sum);
}

// dx = dy − e^y Σ dy
extern "C" __global__ void __launch_bounds__(TEAM_BLOCK)
    log_softmax_backward(const Y* y, const DY* dy, X* dx, int rows) {
    int row = ROW_OF_TEAM;
    if (row >= rows) return;
    y += (u64)row * WIDTH;
    dy += (u64)row * WIDTH;
    dx += (u64)row * WIDTH;
    float g[TEAM_OWN], sum = 0;
    EACH_OF_TEAM(k, c) sum += g[k] = to_float(dy[c]);
    sum = team_sum<TEAM>(sum);
    EACH_OF_TEAM(k, c) dx[c] = round_to<X>(g[k] - expf(to_float(y[c])) * sum);
}
