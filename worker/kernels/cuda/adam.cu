// Adam over one flat buffer of parameters, with decoupled weight decay and the gradient's norm clipped: for every run
// its own step, learning rate and limit, read from the device so that a captured graph can be launched again and again.
#include "common.cuh"

// Elements of one partial sum. The launch depends on it: src/cuda/training.rs.
#define SQUARES 16384
// As torch.nn.utils.clip_grad_norm_ adds it.
#define CLIP_EPSILON 1e-6

// What an update multiplies with.
struct Rates {
    // NaN where the run's gradient is not finite: nothing is changed then.
    float scale;
    float beta1, rest1, beta2, rest2, epsilon, rate, correction, decay;
};

// The sum of squares of SQUARES elements each of (S, count), in f64, into `partials` (S, parts). Grid (parts, S).
extern "C" __global__ void squares(const float* __restrict__ grad, i64 count, double* __restrict__ partials) {
    __shared__ double scratch[WARP];
    i64 first = (i64)blockIdx.x * SQUARES;
    grad += blockIdx.y * count + first;
    int here = count - first < SQUARES ? (int)(count - first) : SQUARES;
    double sum = 0.0;
    for (int i = threadIdx.x; i < here; i += blockDim.x) sum += (double)grad[i] * (double)grad[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[(i64)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// x to the power n by squaring, in the order of compiler-rt's __powidf2, which Rust's powi calls.
__device__ inline double power(double x, u32 n) {
    double result = 1.0;
    for (;;) {
        if (n & 1) result *= x;
        n /= 2;
        if (n == 0) return result;
        x *= x;
    }
}

// The factors of each run's update, computed in f64 (1 - 0.9999 in f32 would be wrong in its fourth digit), and its
// norm into the ring `norms` (S, slots). `step` (S) is the update, from 1, and is counted up; its learning rate stands
// at `learning_rates` (S, slots), slot step % slots; `limit` (S) is infinite where nothing is clipped. Grid (1, S).
extern "C" __global__ void adam_rates(
    const double* __restrict__ partials, int parts, const double* __restrict__ learning_rates,
    const double* __restrict__ limit, int slots, double beta1, double beta2, double epsilon, double weight_decay,
    u64* step, double* __restrict__ norms, Rates* __restrict__ rates
) {
    __shared__ double scratch[WARP];
    int run = blockIdx.y;
    double sum = 0.0;
    for (int i = threadIdx.x; i < parts; i += blockDim.x) sum += partials[(i64)run * parts + i];
    double norm = sqrt(block_sum(sum, scratch));
    if (threadIdx.x != 0) return;
    u64 t = step[run];
    step[run] = t + 1;
    i64 slot = (i64)run * slots + (i64)(t % slots);
    norms[slot] = norm;
    u32 exponent = t < 0x7fffffff ? (u32)t : 0x7fffffff;
    double scale = limit[run] / (norm + CLIP_EPSILON);
    bool finite = norm - norm == 0.0;
    rates[run] = {
        finite ? (float)(scale < 1.0 ? scale : 1.0) : __uint_as_float(0x7fc00000u),
        (float)beta1,
        (float)(1.0 - beta1),
        (float)beta2,
        (float)(1.0 - beta2),
        (float)epsilon,
        (float)(learning_rates[slot] / (1.0 - power(beta1, exponent))),
        (float)(1.0 / sqrt(1.0 - power(beta2, exponent))),
        (float)(learning_rates[slot] * weight_decay),
    };
}

// One update of (S, count) parameters, the same operations in the same order as on the CPU (src/adam.rs). Grid
// (count / threads, S).
extern "C" __global__ void adam(
    const float* __restrict__ grad, const Rates* __restrict__ rates, i64 count, float* __restrict__ param,
    float* __restrict__ m, float* __restrict__ v
) {
    Rates by = rates[blockIdx.y];
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count || by.scale != by.scale) return;
    i += blockIdx.y * count;
    float g = grad[i] * by.scale;
    float m1 = m[i] * by.beta1 + g * by.rest1;
    float v1 = v[i] * by.beta2 + g * g * by.rest2;
    m[i] = m1;
    v[i] = v1;
    param[i] -= by.decay * param[i] + by.rate * m1 / (sqrtf(v1) * by.correction + by.epsilon);
}
