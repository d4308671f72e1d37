// What all kernels share. NVRTC is given this text in place of the line that includes it, and no other header.
//
// Conventions of every kernel:
// - Matrices are row-major and f32. Activations of S stacked runs are dense, (S, rows, width); parameters of all runs
//   and their gradients lie `stride` elements apart from run to run. blockIdx.y is the run.
// - No atomics: every sum has a fixed order, which the launch alone determines, so that a run has the same bytes
//   whenever it is computed, and whatever other runs are stacked with it.
// - Blocks are whole warps. Compiled without contraction (--fmad=false) and with correctly rounded division and square
//   root, and a fused multiplication only where fmaf is written: the same sources, compiled for the CPU, compute the
//   same bytes (see emulate/cuda_emulation.h).
#ifndef TASKVEC_COMMON
#define TASKVEC_COMMON

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define WARP 32
#define ALL_LANES 0xffffffffu

// Memory whose size the launch gives. (The emulation hands out its own.)
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

// Before a loop over the elements of an array that must be in registers. (The emulation has none.)
#ifndef UNROLL
#define UNROLL _Pragma("unroll")
#endif

__device__ inline int lane() { return threadIdx.x % WARP; }
__device__ inline int warp() { return threadIdx.x / WARP; }
__device__ inline int warps() { return blockDim.x / WARP; }
__device__ inline int smaller(int a, int b) { return a < b ? a : b; }

// NaN stays NaN, unlike with fminf and fmaxf.
__device__ inline float clamped(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

// e to the power x, which is first clamped to [-87, 88]; NaN stays NaN. Cephes' expf, as on the CPU (src/float.rs),
// whose AVX paths it equals bit for bit: x = n ln 2 + r, a polynomial in r, and n put into the exponent. Within 2 ulp.
__device__ inline float exponential(float x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const float ROUND = 12582912.0f;
    x = clamped(x, -87.0f, 88.0f);
    float shifted = fmaf(x, 1.44269504f, ROUND);
    float n = shifted - ROUND;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, x));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3982e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    float e = fmaf(p, r * r, r) + 1.0f;
    return e * __uint_as_float((__float_as_uint(shifted) + 127u) << 23);
}

// sum = x + residual of one row, by one warp, with `bias` added first unless it is null; `sum` may be either. Whoever
// writes an element is the one who reads it where a warp goes over the row in the same way again.
__device__ inline void add_residual(const float* x, const float* bias, const float* residual, int d, float* sum) {
    for (int i = lane(); i < d; i += WARP) sum[i] = (bias ? x[i] + bias[i] : x[i]) + residual[i];
}

// A value and its derivative.
struct Valued {
    float value, slope;
};

// GELU in its tanh form as x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): one exponential, and no cancellation for
// negative x. Beyond +-9.5 the sigmoid is 1 or below 1e-33: clamping keeps every intermediate finite.
__device__ inline Valued gelu(float x) {
    const double TWICE = 1.5957691216057307, CUBED = 0.044715 * TWICE;
    const float FACTOR = (float)TWICE, CUBIC = (float)CUBED, SLOPE = (float)(3.0 * CUBED);
    float c = clamped(x, -9.5f, 9.5f);
    float square = c * c;
    float e = exponential(-(c * fmaf(CUBIC, square, FACTOR)));
    float sigma = 1.0f / (1.0f + e);
    float twice_du = fmaf(SLOPE, square, FACTOR);
    // 1 - sigma is e * sigma without cancellation.
    return {x * sigma, fmaf(c * sigma * (e * sigma), twice_du, sigma)};
}

// x * sigmoid(x). Beyond +-87 the sigmoid is 1 or below 1e-37.
__device__ inline Valued silu(float x) {
    float c = clamped(x, -87.0f, 87.0f);
    float e = exponential(-c);
    float sigma = 1.0f / (1.0f + e);
    return {x * sigma, sigma * fmaf(c, e * sigma, 1.0f)};
}

// The sum over a warp, in every lane: a butterfly, whose order is the same in each.
template <class T>
__device__ inline T warp_sum(T value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    }
    return value;
}

// The largest over a warp, in every lane; NaN where there is one.
__device__ inline float warp_max(float value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, value, offset);
        value = other > value || other != other ? other : value;
    }
    return value;
}

// The sum over a block, in every thread: of each warp, then of the warps in order. `scratch` has room for 32.
template <class T>
__device__ inline T block_sum(T value, T* scratch) {
    value = warp_sum(value);
    if (lane() == 0) scratch[warp()] = value;
    __syncthreads();
    T sum = scratch[0];
    for (int i = 1; i < warps(); i++) sum += scratch[i];
    // So that the next use does not overwrite what others still read.
    __syncthreads();
    return sum;
}

// The largest over a block, in every thread; NaN where there is one.
__device__ inline float block_max(float value, float* scratch) {
    value = warp_max(value);
    if (lane() == 0) scratch[warp()] = value;
    __syncthreads();
    float largest = scratch[0];
    for (int i = 1; i < warps(); i++) {
        largest = scratch[i] > largest || scratch[i] != scratch[i] ? scratch[i] : largest;
    }
    __syncthreads();
    return largest;
}

#endif
