// The rows of x positions, which are the even ones of (rows, width), those of one token of every sequence, and tokens that are
// patched. Runs need no dimension of their own: their rows follow each other. Grid (rows taken or written * width / threads).
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

// A copy of (sequences, tokens, width) in which `count` tokens, `first` and every other from there on, are replaced by those of
// `moves` (tokens, width), or moved by them where `add` is not 0.
extern "C" __global__ void patch_tokens(const float* __restrict__ from, const float* __restrict__ moves, int sequences,
                                        int tokens, int width, int first, int count, int add, float* __restrict__ to) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (i64)sequences * tokens * width) return;
    i64 row = i / width;
    int token = (int)(row % tokens), ahead = token - first;
    float value = from[i];
    if (ahead >= 0 && ahead % 2 == 0 && ahead / 2 < count) {
        float move = moves[(i64)token * width + (i - row * width)];
        value = add ? value + move : move;
    }
    to[i] = value;
}
