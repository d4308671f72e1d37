// Causal self-attention of short sequences from packed queries, keys and values, (sequences, T, 3d) to (sequences, T,
// d).
//
// One block per sequence and head, with everything in shared memory. Queries are taken `chunk` at a time: all of them
// where they fit, fewer for long sequences or wide heads. Keys and values take turns in one tile, so that T = 256 with
// heads of 128 fits the 227 KiB of sm_90 (and of sm_80's 163 KiB, T = 256 with heads of 64). Runs need no dimension of
// their own: their sequences follow each other.
//
// Shared floats: (T * pitch + chunk * (head + T)) forward, (T * pitch + 2 * chunk * (head + T)) backward, with
// pitch = head | 1: of an odd distance, so that a warp that reads a column meets every bank once.
// Grid (sequences * heads).
#include "common.cuh"

struct Heads {
    int tokens, head, stride, pitch;
    float scale;
};

__device__ inline Heads heads_of(int tokens, int d, int heads) {
    int head = d / heads;
    return {tokens, head, 3 * d, head | 1, 1.0f / sqrtf((float)head)};
}

// Copies a head's columns of some rows, times `factor`.
__device__ inline void load_head(
    float* to, int pitch, const float* from, int stride, int rows, int head, float factor
) {
    for (int i = threadIdx.x; i < rows * head; i += blockDim.x) {
        int row = i / head, column = i % head;
        to[row * pitch + column] = from[(i64)row * stride + column] * factor;
    }
}

// Four rows of a product at one column: sums[r] = the sum over k of a(k, r) * b(k). Four, so that b is read once for
// four multiplications.
template <class A, class B>
__device__ inline void four_sums(int from, int to, A a, B b, float (&sums)[4]) {
    for (int r = 0; r < 4; r++) sums[r] = 0.0f;
    for (int k = from; k < to; k++) {
        float value = b(k);
        for (int r = 0; r < 4; r++) sums[r] = fmaf(a(k, r), value, sums[r]);
    }
}

// out[i][j] = rows[i] * tile[j] for queries `first + i` and the keys j that they see.
__device__ inline void products_with_tile(
    const Heads& of, const float* rows, const float* tile, int first, int count, float* out
) {
    int keys = first + count, groups = (count + 3) / 4;
    for (int item = threadIdx.x; item < groups * keys; item += blockDim.x) {
        int row = item / keys * 4, j = item % keys;
        if (j > first + row + 3) continue;
        float sums[4];
        four_sums(
            0, of.head, [&](int e, int r) { return rows[smaller(row + r, count - 1) * of.head + e]; },
            [&](int e) { return tile[j * of.pitch + e]; }, sums
        );
        for (int r = 0; r < 4 && row + r < count; r++) out[(row + r) * of.tokens + j] = sums[r];
    }
}

// Softmax of each query's scores by a warp; zeros at the keys of the chunk that it does not see.
__device__ inline void causal_softmax(const Heads& of, int first, int count, float* scores) {
    for (int i = warp(); i < count; i += warps()) {
        float* row = scores + i * of.tokens;
        int seen = first + i + 1;
        float largest = row[0];
        for (int j = lane(); j < seen; j += WARP) largest = row[j] > largest ? row[j] : largest;
        largest = warp_max(largest);
        float sum = 0.0f;
        for (int j = lane(); j < seen; j += WARP) {
            row[j] = exponential(row[j] - largest);
            sum += row[j];
        }
        float share = 1.0f / warp_sum(sum);
        for (int j = lane(); j < first + count; j += WARP) row[j] = j < seen ? row[j] * share : 0.0f;
    }
}

// out[i] = factor * the sum over the keys j of weights[i][j] * tile[j].
__device__ inline void weighted_tile(
    const Heads& of, const float* weights, const float* tile, int first, int count, float factor, float* out,
    int stride
) {
    int groups = (count + 3) / 4;
    for (int item = threadIdx.x; item < groups * of.head; item += blockDim.x) {
        int row = item / of.head * 4, e = item % of.head;
        float sums[4];
        four_sums(
            0, first + smaller(row + 4, count),
            [&](int j, int r) { return weights[smaller(row + r, count - 1) * of.tokens + j]; },
            [&](int j) { return tile[j * of.pitch + e]; }, sums
        );
        for (int r = 0; r < 4 && row + r < count; r++) out[(i64)(row + r) * stride + e] = sums[r] * factor;
    }
}

// out[j] += the sum over the queries i of weights[i][j] * rows[i], for all keys j that any of them sees; where no
// earlier query saw it, it is written instead.
__device__ inline void weighted_rows(
    const Heads& of, const float* weights, const float* rows, int first, int count, float* out
) {
    int keys = first + count, groups = (keys + 3) / 4;
    for (int item = threadIdx.x; item < groups * of.head; item += blockDim.x) {
        int key = item / of.head * 4, e = item % of.head;
        float sums[4];
        four_sums(
            key > first ? key - first : 0, count,
            [&](int i, int r) { return weights[i * of.tokens + smaller(key + r, keys - 1)]; },
            [&](int i) { return rows[i * of.head + e]; }, sums
        );
        for (int r = 0; r < 4 && key + r < keys; r++) {
            float* to = out + (i64)(key + r) * of.stride + e;
            *to = key + r < first ? *to + sums[r] : sums[r];
        }
    }
}

// The gradient of probabilities in `slopes` becomes that of scores: p * (slope - the sum of p * slope), by a warp each.
__device__ inline void softmax_slopes(const Heads& of, const float* scores, int first, int count, float* slopes) {
    for (int i = warp(); i < count; i += warps()) {
        const float* p = scores + i * of.tokens;
        float *row = slopes + i * of.tokens, sum = 0.0f;
        int seen = first + i + 1;
        for (int j = lane(); j < seen; j += WARP) sum = fmaf(p[j], row[j], sum);
        float mean = warp_sum(sum);
        for (int j = lane(); j < first + count; j += WARP) row[j] = j < seen ? p[j] * (row[j] - mean) : 0.0f;
    }
}

extern "C" __global__ void attention_forward(
    const float* __restrict__ qkv, int tokens, int d, int heads, int chunk, float* __restrict__ out
) {
    DYNAMIC_SHARED(float, attention_memory);
    Heads of = heads_of(tokens, d, heads);
    float *tile = attention_memory, *queries = tile + tokens * of.pitch, *scores = queries + chunk * of.head;
    i64 sequence = blockIdx.x / heads;
    int column = blockIdx.x % heads * of.head;
    qkv += sequence * tokens * of.stride + column;
    out += sequence * tokens * d + column;
    for (int first = 0; first < tokens; first += chunk) {
        int count = smaller(chunk, tokens - first);
        load_head(tile, of.pitch, qkv + d, of.stride, first + count, of.head, 1.0f);
        load_head(queries, of.head, qkv + (i64)first * of.stride, of.stride, count, of.head, of.scale);
        __syncthreads();
        products_with_tile(of, queries, tile, first, count, scores);
        __syncthreads();
        causal_softmax(of, first, count, scores);
        load_head(tile, of.pitch, qkv + 2 * d, of.stride, first + count, of.head, 1.0f);
        __syncthreads();
        weighted_tile(of, scores, tile, first, count, 1.0f, out + (i64)first * d, d);
        __syncthreads();
    }
}

// The gradient by qkv, given that by the output. With P the probabilities and G the gradient: dV = P'G, dP = GV',
// dS = P(dP - sum P dP), dQ = dS K, dK = dS'Q. The parts of dK and dV of each chunk are added in order by the thread
// that wrote the first.
extern "C" __global__ void attention_backward(
    const float* __restrict__ qkv, const float* __restrict__ grad, int tokens, int d, int heads, int chunk,
    float* __restrict__ dqkv
) {
    DYNAMIC_SHARED(float, attention_memory);
    Heads of = heads_of(tokens, d, heads);
    float *tile = attention_memory, *queries = tile + tokens * of.pitch, *rows = queries + chunk * of.head;
    float *scores = rows + chunk * of.head, *slopes = scores + chunk * tokens;
    i64 sequence = blockIdx.x / heads;
    int column = blockIdx.x % heads * of.head;
    qkv += sequence * tokens * of.stride + column;
    dqkv += sequence * tokens * of.stride + column;
    grad += sequence * tokens * d + column;
    for (int first = 0; first < tokens; first += chunk) {
        int count = smaller(chunk, tokens - first), keys = first + count;
        load_head(tile, of.pitch, qkv + d, of.stride, keys, of.head, 1.0f);
        load_head(queries, of.head, qkv + (i64)first * of.stride, of.stride, count, of.head, of.scale);
        load_head(rows, of.head, grad + (i64)first * d, d, count, of.head, 1.0f);
        __syncthreads();
        products_with_tile(of, queries, tile, first, count, scores);
        __syncthreads();
        causal_softmax(of, first, count, scores);
        load_head(tile, of.pitch, qkv + 2 * d, of.stride, keys, of.head, 1.0f);
        __syncthreads();
        weighted_rows(of, scores, rows, first, count, dqkv + 2 * d);
        products_with_tile(of, rows, tile, first, count, slopes);
        __syncthreads();
        softmax_slopes(of, scores, first, count, slopes);
        load_head(tile, of.pitch, qkv + d, of.stride, keys, of.head, 1.0f);
        __syncthreads();
        weighted_rows(of, slopes, queries, first, count, dqkv + d);
        weighted_tile(of, slopes, tile, first, count, of.scale, dqkv + (i64)first * of.stride, of.stride);
        __syncthreads();
    }
}
