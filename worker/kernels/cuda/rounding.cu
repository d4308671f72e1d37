// f32 in fewer bits, for products that take them: to the nearest, to the even one of two as near. NaN stays NaN, and what
// is beyond the largest becomes infinite. Of S runs, `count` elements each, which lie apart. Grid (count / threads, S).
#include "common.cuh"

// The bits of x with the last `dropped` of them rounded away: zeros.
__device__ inline u32 rounded(float x, int dropped) {
    u32 bits = __float_as_uint(x), unit = 1u << dropped;
    // A quiet NaN, lest it become infinite where all of its bits are among the last.
    if (x != x) return (bits | 0x00400000u) & ~(unit - 1u);
    return (bits + (unit / 2u - 1u) + (bits >> dropped & 1u)) & ~(unit - 1u);
}

// bf16: 8 bits of exponent, 7 of mantissa.
extern "C" __global__ void to_bf16(
    const float* __restrict__ from, i64 from_stride, i64 count, unsigned short* __restrict__ to, i64 to_stride
) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[blockIdx.y * to_stride + i] = (unsigned short)(rounded(from[blockIdx.y * from_stride + i], 16) >> 16);
}

// TF32 in the place of a float: 8 bits of exponent, 10 of mantissa. `to` may be `from`.
extern "C" __global__ void to_tf32(const float* from, i64 from_stride, i64 count, float* to, i64 to_stride) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[blockIdx.y * to_stride + i] = __uint_as_float(rounded(from[blockIdx.y * from_stride + i], 13));
}
