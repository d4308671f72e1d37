// activation(gate) * up, of (rows, width). Rows of both may lie apart, so that they may be the halves of one matrix.
// Grid (rows * width / threads).
#include "common.cuh"

// As `Activation` in src/language.rs.
#define SILU 0

__device__ inline Valued activation(int which, float x) { return which == SILU ? silu(x) : gelu(x); }

extern "C" __global__ void gated_forward(
    const float* __restrict__ gate, i64 gate_stride, const float* __restrict__ up, i64 up_stride, int which, int rows,
    int width, float* __restrict__ out
) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)rows * width) return;
    i64 row = i / width, column = i % width;
    out[i] = activation(which, gate[row * gate_stride + column]).value * up[row * up_stride + column];
}

// The gradients of gate and up, dense; `dgate` or `dup` may be null.
extern "C" __global__ void gated_backward(
    const float* __restrict__ gate, i64 gate_stride, const float* __restrict__ up, i64 up_stride,
    const float* __restrict__ grad, int which, int rows, int width, float* __restrict__ dgate, float* __restrict__ dup
) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)rows * width) return;
    i64 row = i / width, column = i % width;
    Valued y = activation(which, gate[row * gate_stride + column]);
    if (dgate) dgate[i] = grad[i] * up[row * up_stride + column] * y.slope;
    if (dup) dup[i] = grad[i] * y.value;
}
