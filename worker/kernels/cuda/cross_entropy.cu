// Softmax cross-entropy of some rows of logits (N, classes). Row `positions[i]` is that of target i; runs need no
// dimension of their own but in the mean.
#include "common.cuh"
#include "logarithm.cuh"

// What the backward needs of a row.
struct Norm {
    // The largest logit, and the sum of exponentials relative to it.
    double largest, sum;
};

// -log softmax at the target into `losses`. A block takes a row. Grid (targets).
extern "C" __global__ void cross_entropy_forward(
    const float* __restrict__ logits, const u32* __restrict__ positions, const u32* __restrict__ targets, int classes,
    double* __restrict__ losses, Norm* __restrict__ norms
) {
    __shared__ float largest_of[WARP];
    __shared__ double sum_of[WARP];
    const float* row = logits + (i64)positions[blockIdx.x] * classes;
    float largest = row[0];
    for (int i = threadIdx.x; i < classes; i += blockDim.x) {
        largest = row[i] > largest || row[i] != row[i] ? row[i] : largest;
    }
    largest = block_max(largest, largest_of);
    double sum = 0.0;
    for (int i = threadIdx.x; i < classes; i += blockDim.x) sum += (double)exponential(row[i] - largest);
    sum = block_sum(sum, sum_of);
    if (threadIdx.x != 0) return;
    norms[blockIdx.x] = {(double)largest, sum};
    // The sum is at least 1: the largest has its share. What is not a number has no logarithm but itself.
    losses[blockIdx.x] = (sum == sum ? exact_ln(sum) : sum) + ((double)largest - (double)row[targets[blockIdx.x]]);
}

// The mean of `count` losses of each run. Grid (1, S).
extern "C" __global__ void cross_entropy_mean(const double* __restrict__ losses, int count, double* __restrict__ mean) {
    __shared__ double scratch[WARP];
    losses += (i64)blockIdx.y * count;
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) mean[blockIdx.y] = sum / count;
}

// (softmax - [the target]) * factor, (targets, classes). A block takes a row. Grid (targets).
extern "C" __global__ void cross_entropy_backward(
    const float* __restrict__ logits, const u32* __restrict__ positions, const u32* __restrict__ targets, int classes,
    const Norm* __restrict__ norms, double factor, float* __restrict__ slopes
) {
    const float* row = logits + (i64)positions[blockIdx.x] * classes;
    Norm norm = norms[blockIdx.x];
    float largest = (float)norm.largest, share = (float)(factor / norm.sum);
    int target = (int)targets[blockIdx.x];
    slopes += (i64)blockIdx.x * classes;
    for (int i = threadIdx.x; i < classes; i += blockDim.x) {
        float e = exponential(row[i] - largest);
        // In f64 where 1 is subtracted, which would cancel.
        slopes[i] = i == target ? (float)(((double)e / norm.sum - 1.0) * factor) : e * share;
    }
}
