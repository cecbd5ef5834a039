// Layer normalisation of rows (ROWS, WIDTH), alone or of the sum of a residual connection: the formulas of
// ops/normalization.py. A warp takes a row, a lane every 32nd group of four neighbours; the row stays in registers between
// the passes over it.
//
// X is the type of x and dx, B that of a branch that is added to x and of its cotangent, Z that of their sum, Y that of y
// and dy. Statistics, γ and β are float.

#define GROUPS (WIDTH / 4)                       // of four neighbours in a row
#define OWN ((GROUPS + WARP - 1) / WARP)         // of them to a lane, at most
#define EACH_OWN(k, group) for (int k = 0, group = threadIdx.x % WARP; k < OWN; k++, group += WARP) if (group < GROUPS)

__device__ inline int warp_of_grid() { return (blockIdx.x * blockDim.x + threadIdx.x) / WARP; }
__device__ inline int warps_of_grid() { return gridDim.x * blockDim.x / WARP; }

// y = (v − μ) r γ + β of the row v in registers; keeps μ and r for the way back.
__device__ inline void normalise(
    float v[OWN][4], const float* gamma, const float* beta, Y* y, float* mean, float* rstd, float eps, int row) {
    float sum = 0, squares = 0;
    EACH_OWN(k, group)
        for (int i = 0; i < 4; i++) sum += v[k][i];
    float mu = warp_sum(sum) / WIDTH;
    EACH_OWN(k, group)
        for (int i = 0; i < 4; i++) squares += (v[k][i] - mu) * (v[k][i] - mu);
    float r = 1 / sqrtf(warp_sum(squares) / WIDTH + eps);

    EACH_OWN(k, group) {
        float g[4], b[4];
        load4(gamma + 4 * group, g);
        load4(beta + 4 * group, b);
        for (int i = 0; i < 4; i++) v[k][i] = (v[k][i] - mu) * r * g[i] + b[i];
        store4(y + (u64)row * WIDTH + 4 * group, v[k]);
    }
    if (threadIdx.x % WARP == 0) {
        mean[row] = mu;
        rstd[row] = r;
    }
}

extern "C" __global__ void layer_norm(
    const X* x, const float* gamma, const float* beta, Y* y, float* mean, float* rstd, float eps, int rows) {
    int row = warp_of_grid();
    if (row >= rows) return;  // a whole warp returns
    float v[OWN][4];
    EACH_OWN(k, group) load4(x + (u64)row * WIDTH + 4 * group, v[k]);
    normalise(v, gamma, beta, y, mean, rstd, eps, row);
}

// z = x + branch, and y as above of the z that is written.
extern "C" __global__ void add_layer_norm(
    const X* x, const B* branch, const float* gamma, const float* beta, Y* y, Z* z, float* mean, float* rstd, float eps,
    int rows) {
    int row = warp_of_grid();
    if (row >= rows) return;
    float v[OWN][4];
    EACH_OWN(k, group) {
        u64 place = (u64)row * WIDTH + 4 * group;
        float added[4];
        load4(x + place, v[k]);
        load4(branch + place, added);
        for (int i = 0; i < 4; i++) v[k][i] = to_float(round_to<Z>(v[k][i] + added[i]));
        store4(z + place, v[k]);
    }
    normalise(v, gamma, beta, y, mean, rstd, eps, row);
}

// r (g − mean(g) − x̂ mean(g ⊙ x̂)) with g = dy ⊙ γ, four neighbours at a time to `finish(place, dx)`. A warp goes through
// the rows at the distance of the grid and adds up dγ and dβ of its rows in registers; then each warp writes its sums,
// (warps, WIDTH), for column_sums (reduce.cu). No atomic additions: their order, and so the last bits, would change from
// run to run.
template <typename In, typename Finish>
__device__ inline void backward(
    const Y* dy, const In* x, const float* gamma, const float* mean, const float* rstd, float* dgamma, float* dbeta,
    int rows, Finish finish) {
    float dg[OWN][4] = {}, db[OWN][4] = {};
    for (int row = warp_of_grid(); row < rows; row += warps_of_grid()) {
        u64 start = (u64)row * WIDTH;
        float mu = mean[row], r = rstd[row], x_hat[OWN][4], g[OWN][4], sum = 0, product = 0;
        EACH_OWN(k, group) {
            float dyv[4], gammav[4];
            load4(x + start + 4 * group, x_hat[k]);
            load4(dy + start + 4 * group, dyv);
            load4(gamma + 4 * group, gammav);
            for (int i = 0; i < 4; i++) {
                x_hat[k][i] = (x_hat[k][i] - mu) * r;
                dg[k][i] += dyv[i] * x_hat[k][i];
                db[k][i] += dyv[i];
                g[k][i] = dyv[i] * gammav[i];
                sum += g[k][i];
                product += g[k][i] * x_hat[k][i];
            }
        }
        sum = warp_sum(sum) / WIDTH;
        product = warp_sum(product) / WIDTH;
        EACH_OWN(k, group) {
            for (int i = 0; i < 4; i++) g[k][i] = r * (g[k][i] - sum - x_hat[k][i] * product);
            finish(start + 4 * group, g[k]);
        }
    }
    EACH_OWN(k, group) {
        store4(dgamma + (u64)warp_of_grid() * WIDTH + 4 * group, dg[k]);
        store4(dbeta + (u64)warp_of_grid() * WIDTH + 4 * group, db[k]);
    }
}

extern "C" __global__ void layer_norm_backward(
    const Y* dy, const X* x, const float* gamma, const float* mean, const float* rstd, X* dx, float* dgamma, float* dbeta,
    int rows) {
    backward(dy, x, gamma, mean, rstd, dgamma, dbeta, rows, [=](u64 place, const float* d) { store4(dx + place, d); });
}

// The same with dz, the other cotangent of the sum, added: for x, and for the branch where its type is another.
extern "C" __global__ void add_layer_norm_backward(
    const Y* dy, const Z* dz, const Z* z, const float* gamma, const float* mean, const float* rstd, X* dx, B* dbranch,
    float* dgamma, float* dbeta, int rows) {
    backward(dy, z, gamma, mean, rstd, dgamma, dbeta, rows, [=](u64 place, float* d) {
        float arrived[4];
        load4(dz + place, arrived);
        for (int i = 0; i < 4; i++) d[i] += arrived[i];
        store4(dx + place, d);
        if (dbranch) store4(dbranch + place, d);
    });
}
