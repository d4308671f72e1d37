// Layer norm over rows of d, (x - mean) / sqrt(variance + eps) * weight + bias with the biased variance.
#include "common.cuh"

// Rows of a block of the backward, and of one partial sum. The launch depends on it: src/cuda/layers.rs.
#define LAYER_NORM_ROWS 32

struct Moments {
    float mean, scale;
};

// Mean and 1 / sqrt(variance + eps) of a row, by one warp.
__device__ inline Moments layer_norm_moments(const float* row, int d, float eps) {
    float sum = 0.0f, squares = 0.0f;
    for (int i = lane(); i < d; i += WARP) sum += row[i];
    float mean = warp_sum(sum) / d;
    for (int i = lane(); i < d; i += WARP) squares = fmaf(row[i] - mean, row[i] - mean, squares);
    return {mean, 1.0f / sqrtf(warp_sum(squares) / d + eps)};
}

// A warp takes a row. Grid (rows / warps of a block, S).
extern "C" __global__ void layer_norm_forward(
    const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, i64 stride,
    float eps, int rows, int d, float* __restrict__ out
) {
    int row = blockIdx.x * warps() + warp();
    if (row >= rows) return;
    i64 at = ((i64)blockIdx.y * rows + row) * d;
    x += at, out += at, weight += blockIdx.y * stride, bias += blockIdx.y * stride;
    Moments of = layer_norm_moments(x, d, eps);
    for (int i = lane(); i < d; i += WARP) out[i] = fmaf((x[i] - of.mean) * of.scale, weight[i], bias[i]);
}

// The same of x + added + residual, where `added` is a bias (d) of each run or null; the sum goes to `sum`, which may be x
// or residual. Grid (rows / warps of a block, S).
extern "C" __global__ void layer_norm_residual(
    const float* x, const float* __restrict__ added, const float* residual, float* sum,
    const float* __restrict__ weight, const float* __restrict__ bias, i64 stride, float eps, int rows, int d,
    float* __restrict__ out
) {
    int row = blockIdx.x * warps() + warp();
    if (row >= rows) return;
    i64 at = ((i64)blockIdx.y * rows + row) * d, run = blockIdx.y * stride;
    sum += at, out += at, weight += run, bias += run;
    add_residual(x + at, added ? added + run : added, residual + at, d, sum);
    Moments of = layer_norm_moments(sum, d, eps);
    for (int i = lane(); i < d; i += WARP) out[i] = fmaf((sum[i] - of.mean) * of.scale, weight[i], bias[i]);
}

// Adds the gradient by x to dx, given that by the output: with n the normalised row and h = grad * weight,
// (h - mean(h) - n * mean(h * n)) / sqrt(variance + eps). Those by weight and bias are summed over the rows of the
// block into `partials` (S, blocks, 2d), for `sum_partials`; with them, where `sums` is 3 instead of 2, what dx then is, as
// `column_sums` does it. Grid (rows / LAYER_NORM_ROWS, S).
extern "C" __global__ void layer_norm_backward(
    const float* __restrict__ x, const float* __restrict__ weight, i64 stride, const float* __restrict__ grad,
    float eps, int rows, int d, float* __restrict__ dx, float* __restrict__ partials, int sums
) {
    __shared__ Moments moments[LAYER_NORM_ROWS];
    int first = blockIdx.x * LAYER_NORM_ROWS, count = smaller(LAYER_NORM_ROWS, rows - first);
    i64 at = ((i64)blockIdx.y * rows + first) * d;
    x += at, grad += at, dx += at, weight += blockIdx.y * stride;
    for (int r = warp(); r < count; r += warps()) {
        const float *row = x + r * d, *g = grad + r * d;
        Moments of = layer_norm_moments(row, d, eps);
        float h = 0.0f, hn = 0.0f;
        for (int i = lane(); i < d; i += WARP) {
            h = fmaf(g[i], weight[i], h);
            hn = fmaf(g[i] * weight[i], (row[i] - of.mean) * of.scale, hn);
        }
        float mean_h = warp_sum(h) / d, mean_hn = warp_sum(hn) / d;
        for (int i = lane(); i < d; i += WARP) {
            float normal = (row[i] - of.mean) * of.scale;
            dx[r * d + i] += (g[i] * weight[i] - mean_h - normal * mean_hn) * of.scale;
        }
        if (lane() == 0) moments[r] = of;
    }
    __syncthreads();
    partials += ((i64)blockIdx.y * gridDim.x + blockIdx.x) * sums * d;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float dweight = 0.0f, dbias = 0.0f;
        for (int r = 0; r < count; r++) {
            float g = grad[r * d + i];
            dweight = fmaf(g, (x[r * d + i] - moments[r].mean) * moments[r].scale, dweight);
            dbias += g;
        }
        partials[i] = dweight;
        partials[d + i] = dbias;
        if (sums < 3) continue;
        float sum = 0.0f;
        for (int r = 0; r < count; r++) sum += dx[r * d + i];
        partials[2 * d + i] = sum;
    }
}
