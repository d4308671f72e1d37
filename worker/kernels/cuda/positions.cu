// The rows of x positions, which are the even ones of (rows, width), and those of one token of every sequence. Runs need no
// dimension of their own: their rows follow each other. Grid (rows gathered or scattered * width / threads).
#include "common.cuh"

// (2 * rows, width) to (rows, width).
extern "C" __global__ void gather_even(const float* __restrict__ from, int rows, int width, float* __restrict__ to) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)rows * width) return;
    to[i] = from[i + i / width * width];
}

// The opposite, (rows, width) to (2 * rows, width), with zeros at the odd rows.
extern "C" __global__ void scatter_even(const float* __restrict__ from, int rows, int width, float* __restrict__ to) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)rows * width) return;
    i64 even = i + i / width * width;
    to[even] = from[i];
    to[even + width] = 0.0f;
}

// Row `first` of every `every` ones: (rows * every, width) to (rows, width).
extern "C" __global__ void gather_every(const float* __restrict__ from, int rows, int every, int first, int width,
                                        float* __restrict__ to) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)rows * width) return;
    i64 row = i / width;
    to[i] = from[(row * every + first) * width + (i - row * width)];
}
