// Sums over rows in a fixed order: the gradients of biases, positions and norms.
#include "common.cuh"

// Rows of one partial sum. The launch depends on it: src/cuda/layers.rs.
#define SUM_ROWS 32

// Sums SUM_ROWS rows of (S, rows, width) each into `partials` (S, parts, width). A thread takes a column. Grid
// (width / threads, S, parts).
extern "C" __global__ void column_sums(const float* __restrict__ x, int rows, int width, float* __restrict__ partials) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    int first = blockIdx.z * SUM_ROWS, count = smaller(SUM_ROWS, rows - first);
    x += ((i64)blockIdx.y * rows + first) * width + column;
    float sum = 0.0f;
    for (int r = 0; r < count; r++) sum += x[(i64)r * width];
    partials[((i64)blockIdx.y * gridDim.z + blockIdx.z) * width + column] = sum;
}

// The sum of (S, parts, width) over the parts: of columns below `split` to `first`, of the others to `rest`, both
// `stride` apart from run to run. Grid (width / threads, S).
extern "C" __global__ void sum_partials(
    const float* __restrict__ partials, int parts, int width, int split, float* __restrict__ first,
    float* __restrict__ rest, i64 stride
) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    partials += (i64)blockIdx.y * parts * width + column;
    float sum = 0.0f;
    for (int part = 0; part < parts; part++) sum += partials[(i64)part * width];
    i64 run = blockIdx.y * stride;
    if (column < split) first[run + column] = sum;
    else rest[run + column - split] = sum;
}

// Words of an entry of the table below: the first of its columns among those of all, how many it has, how many partial sums of
// each run and how far they lie apart, where the first is, and where the sums go in what a run has of `out`.
#define SUM_WORDS 6

// The same of many partial sums at once: each of `sums` has its own shape and place in `partials`, where the runs follow each
// other. Runs are `stride` apart in `out`. Grid (columns / threads, S).
extern "C" __global__ void sum_all_partials(
    const float* __restrict__ partials, const unsigned* __restrict__ table, int sums, int columns,
    float* __restrict__ out, i64 stride
) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    int low = 0, high = sums;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (table[middle * SUM_WORDS] <= (unsigned)column) low = middle;
        else high = middle;
    }
    const unsigned* of = table + low * SUM_WORDS;
    int at = column - (int)of[0], parts = (int)of[2];
    i64 pitch = of[3];
    partials += (i64)of[4] + (i64)blockIdx.y * parts * pitch + at;
    float sum = 0.0f;
    for (int part = 0; part < parts; part++) sum += partials[part * pitch];
    out[blockIdx.y * stride + of[5] + at] = sum;
}
