// Mean squared error of each run, its gradient, and the loss into a ring that the host reads when it likes.
#include "common.cuh"

// `predicted` and `target` (S, count); gradient = 2 (predicted - target) / count, which may overwrite `predicted`. The
// loss, and that of predicting 0, go to `ring` (S, slots, 2) at the slot `step[run] % slots`. Grid (1, S).
extern "C" __global__ void mse(
    const float* predicted, const float* __restrict__ target, int count, const u64* __restrict__ step, int slots,
    float* gradient, double* __restrict__ ring
) {
    __shared__ double scratch[WARP];
    i64 at = (i64)blockIdx.y * count;
    predicted += at, target += at, gradient += at;
    double squares = 0.0, of_zero = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        double y = target[i], error = (double)predicted[i] - y;
        squares += error * error;
        of_zero += y * y;
        gradient[i] = (float)(2.0 * error / count);
    }
    squares = block_sum(squares, scratch);
    of_zero = block_sum(of_zero, scratch);
    if (threadIdx.x == 0) {
        double* slot = ring + ((i64)blockIdx.y * slots + (i64)(step[blockIdx.y] % slots)) * 2;
        slot[0] = squares / count;
        slot[1] = of_zero / count;
    }
}
