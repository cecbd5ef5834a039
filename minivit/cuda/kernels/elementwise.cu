// What residual connections, drop-path, dropout and changes of type do to each number of an array. X and Y are the
// types of the arguments, Z is that of the result. An array is seen as `groups` of four neighbours and a `tail`: see map.

// z = x, in another type.
extern "C" __global__ void cast(const X* x, Z* z, u32 groups, u32 tail) {
    map(x, z, groups, tail, [](float v) { return v; });
}

// z = x + y, two arrays of one shape.
extern "C" __global__ void add(const X* x, const Y* y, Z* z, u32 groups, u32 tail) {
    map2(x, y, z, groups, tail, [](float v, float w) { return v + w; });
}

// z = x + y, where y (`period` groups) is added to each of the arrays that lie one after another in x.
extern "C" __global__ void add_to_each(const X* x, const Y* y, Z* z, u32 groups, u32 period) {
    float v[AHEAD][4], w[AHEAD][4];
    EACH_GROUP(k, group) {
        load4(x + 4ull * group, v[k]);
        load4(y + 4ull * (group % period), w[k]);
    }
    EACH_GROUP(k, group) {
        for (int i = 0; i < 4; i++) v[k][i] += w[k][i];
        store4(z + 4ull * group, v[k]);
    }
}

// z = factor · x, for a number.
extern "C" __global__ void scale(const X* x, float factor, Z* z, u32 groups, u32 tail) {
    map(x, z, groups, tail, [=](float v) { return v * factor; });
}

// z = x ⊙ y, two arrays of one shape.
extern "C" __global__ void multiply(const X* x, const Y* y, Z* z, u32 groups, u32 tail) {
    map2(x, y, z, groups, tail, [](float v, float w) { return v * w; });
}

// z = x ⊙ y, where each number of y is the factor of the next `each` groups of x: those of one sample, for drop-path.
// What is dropped is not even read (and infinities there do not become NaN).
extern "C" __global__ void scale_each(const X* x, const Y* y, Z* z, u32 groups, u32 each) {
    float v[AHEAD][4] = {}, factor[AHEAD];
    EACH_GROUP(k, group) {
        factor[k] = to_float(y[group / each]);
        if (factor[k] != 0) load4(x + 4ull * group, v[k]);
    }
    EACH_GROUP(k, group) {
        for (int i = 0; i < 4; i++) v[k][i] *= factor[k];
        store4(z + 4ull * group, v[k]);
    }
}
