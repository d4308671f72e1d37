// Rotary positions: of each head of (tokens, heads, dim), element i turns with element i + pairs by its token's angle,
// for i below `pairs`; what lies behind stays. The backward is the same with `direction` -1.
#include "common.cuh"

// `cos` and `sin` (tokens, pairs). `out` is not `x`. Grid (tokens * heads * dim / threads).
extern "C" __global__ void rotate(
    const float* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin, float direction,
    int tokens, int heads, int dim, int pairs, float* __restrict__ out
) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)tokens * heads * dim) return;
    int e = (int)(i % dim), pair = e < pairs ? e : e - pairs;
    if (e >= 2 * pairs) {
        out[i] = x[i];
        return;
    }
    i64 angle = i / ((i64)heads * dim) * pairs + pair;
    float c = cos[angle], s = sin[angle] * direction;
    out[i] = e < pairs ? x[i] * c - x[i + pairs] * s : x[i] * c + x[i - pairs] * s;
}
