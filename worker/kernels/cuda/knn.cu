// The nearest others of every point, as worker/science/src/analysis/knn.rs finds them: distances are sums of squared
// differences in f64, in the same order and with the same roundings, so that the order of neighbours is the same; of
// equally distant points the one with the lower index is nearer; a point is not its own neighbour. A distance that is
// NaN is farther than all others.
#include "common.cuh"

// Eight partial sums added in order, and then what is left over: nothing is fused.
__device__ inline double squared_distance(const float* a, const float* b, int dim) {
    double sums[8] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    int whole = dim - dim % 8;
    for (int i = 0; i < whole; i += 8) {
        for (int lane = 0; lane < 8; lane++) {
            double difference = __dsub_rn((double)a[i + lane], (double)b[i + lane]);
            sums[lane] = __dadd_rn(sums[lane], __dmul_rn(difference, difference));
        }
    }
    double total = 0.0, rest = 0.0;
    for (int lane = 0; lane < 8; lane++) total = __dadd_rn(total, sums[lane]);
    for (int i = whole; i < dim; i++) {
        double difference = __dsub_rn((double)a[i], (double)b[i]);
        rest = __dadd_rn(rest, __dmul_rn(difference, difference));
    }
    return __dadd_rn(total, rest);
}

__device__ inline bool nearer(double a, int i, double b, int j) {
    bool a_nan = a != a, b_nan = b != b;
    if (a_nan || b_nan) return a_nan == b_nan ? i < j : b_nan;
    return a < b || (a == b && i < j);
}

// `sets` sets of points (sets, n, dim), whose `k` nearest (at most n - 1) go to (sets, n, k), nearest first. A block
// takes a point; others count how many are nearer than each. Shared doubles: n. Grid (n, sets).
extern "C" __global__ void neighbours(const float* __restrict__ points, int n, int dim, int k, u32* __restrict__ out) {
    DYNAMIC_SHARED(double, distances);
    int self = blockIdx.x;
    points += (i64)blockIdx.y * n * dim;
    out += ((i64)blockIdx.y * n + self) * k;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        distances[j] = squared_distance(points + (i64)self * dim, points + (i64)j * dim, dim);
    }
    __syncthreads();
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        if (j == self) continue;
        int rank = 0;
        for (int other = 0; other < n && rank < k; other++) {
            rank += other != self && nearer(distances[other], other, distances[j], j);
        }
        if (rank < k) out[rank] = (u32)j;
    }
}
