// The cross entropy of rows of logits (ROWS, WIDTH) with labels or distributions: the formula of ops/loss.py. TEAM
// threads take a row, and on the way forward have it in their registers between the passes over it.
//
//     ℓ = Σ t_k (L − z_k),   L = ln Σ e^z
//     dz = p Σ t − t,        p = e^(z − L)
//
// X is the type of the logits z, TARGET that of the target: whole numbers (labels) or numbers (t itself). Forward keeps
// L, one number a row, and the way back computes p again from it: p itself, as large as the logits, is never written.

// What the target says of class c: 1 for the label and 0 for the others. With a label that is no class all are NaN, and
// so are loss and gradient of the row; to raise an error, the host would have to wait for the labels.
template <typename Label> __device__ inline float share(const Label* labels, int row, int c) {
    long long label = labels[row];
    return label < 0 || label >= WIDTH ? NOT_A_NUMBER : c == label ? 1 : 0;
}
__device__ inline float share(const float* t, int row, int c) { return t[(u64)row * WIDTH + c]; }
__device__ inline float share(const bf16* t, int row, int c) { return to_float(t[(u64)row * WIDTH + c]); }

// Smoothed: mixed with the same share for each class.
__device__ inline float smoothed(const TARGET* target, int row, int c, float smoothing) {
    return (1 - smoothing) * share(target, row, c) + smoothing / WIDTH;
}

// losses = weight · ℓ, with weight 1/ROWS where they will be averaged; log_sums = L.
extern "C" __global__ void __launch_bounds__(TEAM_BLOCK)
    cross_entropy(const X* z, const TARGET* target, float* losses, float* log_sums, float smoothing, float weight,
                  int rows) {
    int row = ROW_OF_TEAM;
    if (row >= rows) return;  // a whole team returns
    z += (u64)row * WIDTH;
    float v[TEAM_OWN], most = NEGATIVE_INFINITY, sum = 0, loss = 0;
    EACH_OF_TEAM(k, c) {
        v[k] = to_float(z[c]);
        most = fmaxf(most, v[k]);
    }
    most = team_max<TEAM>(most);
    EACH_OF_TEAM(k, c) sum += expf(v[k] - most);
    float log_sum = logf(team_sum<TEAM>(sum));
    EACH_OF_TEAM(k, c) loss += smoothed(target, row, c, smoothing) * (log_sum - (v[k] - most));
    loss = team_sum<TEAM>(loss);
    if (threadIdx.x % TEAM == 0) {
        losses[row] = weight * loss;
        log_sums[row] = most + log_sum;
    }
}

// dz = weight · dy · (p Σ t − t), with dy[row], or dy[0] for all rows where their losses were added up; dt, if not null,
// is the gradient of a distribution, weight · dy · (1 − smoothing) (L − z).
extern "C" __global__ void __launch_bounds__(TEAM_BLOCK)
    cross_entropy_backward(const float* dy, const X* z, const TARGET* target, const float* log_sums, X* dz, float* dt,
                           float smoothing, float weight, int each_its_own, int rows) {
    int row = ROW_OF_TEAM;
    if (row >= rows) return;
    u64 start = (u64)row * WIDTH;
    float g = weight * dy[each_its_own ? row : 0], log_sum = log_sums[row], sum = 0;
    for (int c = threadIdx.x % TEAM; c < WIDTH; c += TEAM) sum += smoothed(target, row, c, smoothing);
    sum = team_sum<TEAM>(sum);
    for (int c = threadIdx.x % TEAM; c < WIDTH; c += TEAM) {
        float log_p = to_float(z[start + c]) - log_sum;
        dz[start + c] = round_to<X>(g * (expf(log_p) * sum - smoothed(target, row, c, smoothing)));
        if (dt) dt[start + c] = g * (smoothing - 1) * log_p;
    }
}
