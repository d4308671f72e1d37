// Sequences of the sparse linear mixtures of worker/science/src/data.rs, the same numbers bit for bit: block 0 of a
// sequence's stream gives its basis; the normals from block 1 on are the weights of the basis's coordinates, then the
// inputs, then the noise of each example.
#include "common.cuh"
#include "logarithm.cuh"
#include "philox.cuh"

// How sequences come by their basis.
#define BASES_DRAWN 0
#define BASES_FIXED 1
#define BASES_IN_TURN 2

// What a run's mixture is.
struct Mixture {
    u64 seed;
    double weight_mean, noise;
    // How many there are, and where the table of coordinates of the first begins (see `coordinates`).
    u32 bases, table;
};

// The shape that all runs share.
struct MixtureShape {
    u32 dim, examples, channels, y_channel;
    // Of every basis.
    u32 rank;
    u32 purpose;
    u32 mode, fixed;
    // Index of the first sequence.
    u32 first;
};

// Where normal number i goes: to the weights, the inputs or the noise.
__device__ inline void mixture_place(
    const MixtureShape& of, const Mixture& run, u32 i, double normal, float* weights, float* x, double* noise
) {
    u32 inputs = of.rank + of.examples * of.dim;
    if (i < of.rank) weights[i] = (float)__dadd_rn(run.weight_mean, normal);
    else if (i < inputs) x[i - of.rank] = (float)normal;
    else if (i < inputs + of.examples) noise[i - inputs] = normal;
}

// `tokens` (S, B, 2K, C), of which channels that no token uses are zero, and `y` (S, B, K) of the sequences `first` to
// first + B of update `step[run]`. `coordinates` has `rank` sorted ones for each basis. A block takes a sequence.
// Shared doubles: K + (K * dim + rank + 1) / 2. Grid (B, S).
extern "C" __global__ void mixture(
    const Mixture* __restrict__ runs, const u64* __restrict__ step, const u32* __restrict__ coordinates,
    MixtureShape of, float* __restrict__ tokens, float* __restrict__ y, u32* __restrict__ basis
) {
    DYNAMIC_SHARED(double, mixture_memory);
    double* noise = mixture_memory;
    float *x = (float*)(noise + of.examples), *weights = x + of.examples * of.dim;
    Mixture run = runs[blockIdx.y];
    Stream stream = {run.seed, step[blockIdx.y], of.purpose, of.first + blockIdx.x};
    i64 sequence = (i64)blockIdx.y * gridDim.x + blockIdx.x;
    u32 k = of.mode == BASES_DRAWN ? below(stream, 0, run.bases)
          : of.mode == BASES_FIXED ? of.fixed : stream.index % run.bases;
    u32 normals = of.rank + of.examples * (of.dim + 1);
    for (u32 pair = threadIdx.x; pair < (normals + 1) / 2; pair += blockDim.x) {
        Pair of_pair = normal_pair(stream, pair + 1);
        mixture_place(of, run, 2 * pair, of_pair.first, weights, x, noise);
        mixture_place(of, run, 2 * pair + 1, of_pair.second, weights, x, noise);
    }
    __syncthreads();
    const u32* active = coordinates + run.table + k * of.rank;
    tokens += sequence * 2 * of.examples * of.channels;
    for (u32 example = threadIdx.x; example < of.examples; example += blockDim.x) {
        double mean = -0.0;
        for (u32 i = 0; i < of.rank; i++) {
            mean = __dadd_rn(mean, __dmul_rn((double)weights[i], (double)x[example * of.dim + active[i]]));
        }
        float value = (float)__dadd_rn(mean, __dmul_rn(run.noise, noise[example]));
        y[sequence * of.examples + example] = value;
        for (u32 c = 0; c < of.channels; c++) {
            tokens[(2 * example + 1) * of.channels + c] = c == of.y_channel ? value : 0.0f;
        }
    }
    for (u32 i = threadIdx.x; i < of.examples * of.channels; i += blockDim.x) {
        u32 example = i / of.channels, c = i % of.channels;
        tokens[2 * example * of.channels + c] = c < of.dim ? x[example * of.dim + c] : 0.0f;
    }
    if (threadIdx.x == 0) basis[sequence] = k;
}
