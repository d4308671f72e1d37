// Root mean square norm over rows of d, x / sqrt(mean(x^2) + eps) * weight.
#include "common.cuh"

// Rows of a block of the backward, and of one partial sum. The launch depends on it: src/cuda/layers.rs.
#define RMS_NORM_ROWS 32

// 1 / sqrt(mean(x^2) + eps) of a row, by one warp.
__device__ inline float rms_norm_scale(const float* row, int d, float eps) {
    float squares = 0.0f;
    for (int i = lane(); i < d; i += WARP) squares = fmaf(row[i], row[i], squares);
    return 1.0f / sqrtf(warp_sum(squares) / d + eps);
}

// A warp takes a row. Grid (rows / warps of a block, S).
extern "C" __global__ void rms_norm_forward(
    const float* __restrict__ x, const float* __restrict__ weight, i64 stride, float eps, int rows, int d,
    float* __restrict__ out
) {
    int row = blockIdx.x * warps() + warp();
    if (row >= rows) return;
    i64 at = ((i64)blockIdx.y * rows + row) * d;
    x += at, out += at, weight += blockIdx.y * stride;
    float scale = rms_norm_scale(x, d, eps);
    for (int i = lane(); i < d; i += WARP) out[i] = x[i] * scale * weight[i];
}

// The same of x + added + residual, where `added` is a bias (d) of each run or null; the sum goes to `sum`, which may be x
// or residual. Grid (rows / warps of a block, S).
extern "C" __global__ void rms_norm_residual(
    const float* x, const float* __restrict__ added, const float* residual, float* sum,
    const float* __restrict__ weight, i64 stride, float eps, int rows, int d, float* __restrict__ out
) {
    int row = blockIdx.x * warps() + warp();
    if (row >= rows) return;
    i64 at = ((i64)blockIdx.y * rows + row) * d, run = blockIdx.y * stride;
    sum += at, out += at, weight += run;
    add_residual(x + at, added ? added + run : added, residual + at, d, sum);
    float scale = rms_norm_scale(sum, d, eps);
    for (int i = lane(); i < d; i += WARP) out[i] = sum[i] * scale * weight[i];
}

// Adds the gradient by x to dx: with n = x * scale and h = grad * weight, (h - n * mean(h * n)) * scale. That by the
// weight is summed over the rows of the block into `partials` (S, blocks, d), for `sum_partials`. Grid
// (rows / RMS_NORM_ROWS, S).
extern "C" __global__ void rms_norm_backward(
    const float* __restrict__ x, const float* __restrict__ weight, i64 stride, const float* __restrict__ grad,
    float eps, int rows, int d, float* __restrict__ dx, float* __restrict__ partials
) {
    __shared__ float scales[RMS_NORM_ROWS];
    int first = blockIdx.x * RMS_NORM_ROWS, count = smaller(RMS_NORM_ROWS, rows - first);
    i64 at = ((i64)blockIdx.y * rows + first) * d;
    x += at, grad += at, dx += at, weight += blockIdx.y * stride;
    for (int r = warp(); r < count; r += warps()) {
        const float *row = x + r * d, *g = grad + r * d;
        float scale = rms_norm_scale(row, d, eps), hn = 0.0f;
        for (int i = lane(); i < d; i += WARP) hn = fmaf(g[i] * weight[i], row[i] * scale, hn);
        float mean = warp_sum(hn) / d;
        for (int i = lane(); i < d; i += WARP) {
            dx[r * d + i] += (g[i] * weight[i] - row[i] * scale * mean) * scale;
        }
        if (lane() == 0) scales[r] = scale;
    }
    __syncthreads();
    partials += ((i64)blockIdx.y * gridDim.x + blockIdx.x) * d;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float dweight = 0.0f;
        for (int r = 0; r < count; r++) dweight = fmaf(grad[r * d + i], x[r * d + i] * scales[r], dweight);
        partials[i] = dweight;
    }
}
