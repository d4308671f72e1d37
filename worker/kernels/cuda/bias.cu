// What follows a matrix product: a bias with GELU, with a residual, or with positions. Elementwise on (S, rows, width);
// `out` may be `x`. Grid (rows * width / threads, S).
#include "common.cuh"

// out = gelu(x + bias); where `slope` is given, also GELU's derivative, for `gelu_backward`.
extern "C" __global__ void bias_gelu(
    const float* x, const float* __restrict__ bias, i64 stride, int rows, int width, float* out,
    float* __restrict__ slope
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * width) return;
    i64 at = (i64)blockIdx.y * rows * width + i;
    Valued y = gelu(x[at] + bias[blockIdx.y * stride + i % width]);
    out[at] = y.value;
    if (slope) slope[at] = y.slope;
}

// out = grad * slope, on (S, count); `out` may be `grad`.
extern "C" __global__ void gelu_backward(const float* grad, const float* __restrict__ slope, int count, float* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    i64 at = (i64)blockIdx.y * count + i;
    out[at] = grad[at] * slope[at];
}

// Rows of one partial sum. The launch depends on it: src/cuda/layers.rs.
#define GELU_ROWS 32

// The same on (S, rows, width), with the sums of GELU_ROWS rows of `out` each in `partials` (S, parts, width), as
// `column_sums` does it. Grid (width / threads, S, parts).
extern "C" __global__ void gelu_backward_sums(
    const float* grad, const float* __restrict__ slope, int rows, int width, float* out, float* __restrict__ partials
) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    int first = blockIdx.z * GELU_ROWS, count = smaller(GELU_ROWS, rows - first);
    i64 at = ((i64)blockIdx.y * rows + first) * width + column;
    float sum = 0.0f;
    for (int r = 0; r < count; r++, at += width) {
        float y = grad[at] * slope[at];
        out[at] = y;
        sum += y;
    }
    partials[((i64)blockIdx.y * gridDim.z + blockIdx.z) * width + column] = sum;
}

// out = x + bias + residual; without the last where `residual` is null. `out` may be `residual`.
extern "C" __global__ void bias_residual(
    const float* x, const float* __restrict__ bias, i64 stride, const float* residual, int rows, int width, float* out
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * width) return;
    i64 at = (i64)blockIdx.y * rows * width + i;
    float y = x[at] + bias[blockIdx.y * stride + i % width];
    out[at] = residual ? y + residual[at] : y;
}

// out = x + bias + the position's row of `positions` (tokens, width), for sequences of `tokens` rows.
extern "C" __global__ void bias_positions(
    const float* x, const float* __restrict__ bias, const float* __restrict__ positions, i64 stride, int rows,
    int width, int tokens, float* out
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * width) return;
    i64 at = (i64)blockIdx.y * rows * width + i, run = blockIdx.y * stride;
    out[at] = x[at] + bias[run + i % width] + positions[run + i % (tokens * width)];
}
