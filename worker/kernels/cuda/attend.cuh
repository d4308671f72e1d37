// Causal attention with grouped queries over spans of keys, for rows of any length one after the other: queries (N, H,
// D), keys and values (M, G, D), as src/attend.rs computes it, with the same sums in the same order.
//
// The queries of a row are cut into blocks as on the CPU (`src/cuda/attend.rs` lists them), of which a block of threads
// takes some lanes: a query and a head each, of one group. Keys are taken 64 at a time, with the softmax kept up to date,
// so that no row of scores is ever whole.
#ifndef TASKVEC_ATTEND
#define TASKVEC_ATTEND

#include "common.cuh"

// Keys at a time. The launch depends on it: src/cuda/attend.rs.
#define ATTEND_KEYS 64
// Of rows of scores: odd, so that a warp that reads a column meets every bank once.
#define ATTEND_PITCH 65
// Below every score.
#define ATTEND_LOW -1e30f

struct Grouped {
    // From token to token.
    i64 q_stride, k_stride, v_stride;
    int heads, groups, dim;
    // Keys that a query sees, its own included; the largest int where it sees all.
    int window;
    float scale;
    // Scores become cap * tanh(score * inverse); 0 where they stay.
    float cap, inverse;
    // That a block of threads takes at most.
    int lanes;
};

// Of rows of a head in shared memory: odd, as above.
__device__ inline int pitch_of(const Grouped& of) { return of.dim | 1; }

// Some queries of one row.
struct GroupedBlock {
    // The first, and how many.
    int query, queries;
    // How many keys of its row the first one sees where there is no window; the next one sees one more.
    int ends;
    // The row's first keys, `before` of them, and where the others begin.
    int prefix, before, keys;
};

// Lanes of one block of threads.
struct GroupedLanes {
    GroupedBlock of;
    int window, heads, group, first, count;
};

// From the first query of the block.
__device__ inline int lane_index(const GroupedLanes& lanes, int lane) { return (lanes.first + lane) / lanes.heads; }

// Of a lane among (N, H).
__device__ inline i64 lane_row(const GroupedLanes& lanes, int lane, int heads) {
    int head = lanes.group * lanes.heads + (lanes.first + lane) % lanes.heads;
    return (i64)(lanes.of.query + lane_index(lanes, lane)) * heads + head;
}

// The end of the keys that a lane sees.
__device__ inline int lane_end(const GroupedLanes& lanes, int lane) { return lanes.of.ends + lane_index(lanes, lane); }

__device__ inline bool lane_sees(const GroupedLanes& lanes, int lane, int key) {
    int end = lane_end(lanes, lane);
    return key < end && key >= end - lanes.window;
}

// The keys that any query of the block sees.
__device__ inline int wanted_from(const GroupedLanes& lanes) {
    return lanes.of.ends > lanes.window ? lanes.of.ends - lanes.window : 0;
}
__device__ inline int wanted_to(const GroupedLanes& lanes) { return lanes.of.ends + lanes.of.queries - 1; }

__device__ inline GroupedLanes lanes_of(const Grouped& of, const GroupedBlock& block, int first) {
    int heads = of.heads / of.groups;
    return {block, of.window, heads, (int)blockIdx.y, first, smaller(of.lanes, block.queries * heads - first)};
}

// Cephes' tanhf, as on the CPU (src/float.rs): a polynomial below 0.625, where 1 - 2 / (e^2x + 1) would cancel. NaN stays
// NaN.
__device__ inline float hyperbolic_tangent(float x) {
    float size = fabsf(x), square = x * x;
    float p = -5.7049887e-3f;
    p = fmaf(p, square, 2.063909e-2f);
    p = fmaf(p, square, -5.3739716e-2f);
    p = fmaf(p, square, 1.3331442e-1f);
    p = fmaf(p, square, -3.333328e-1f);
    float small = fmaf(p * square, x, x);
    float large = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
    return size < 0.625f ? small : copysignf(large, x);
}

// store(row, column, the sum over k of a(row, k) * b(column, k)). A thread takes four rows and four columns, so that what
// is read is used four times; its columns lie apart, so that those of neighbours lie together.
template <class A, class B, class Store>
__device__ inline void grouped_products(int rows, int columns, int terms, A a, B b, Store store) {
    int groups = (rows + 3) / 4, apart = (columns + 3) / 4;
    for (int item = threadIdx.x; item < groups * apart; item += blockDim.x) {
        int row = item / apart * 4, column = item % apart;
        float sums[4][4] = {};
        for (int k = 0; k < terms; k++) {
            float left[4], right[4];
            for (int r = 0; r < 4; r++) left[r] = a(smaller(row + r, rows - 1), k);
            for (int c = 0; c < 4; c++) right[c] = b(smaller(column + c * apart, columns - 1), k);
            for (int r = 0; r < 4; r++) {
                for (int c = 0; c < 4; c++) sums[r][c] = fmaf(left[r], right[c], sums[r][c]);
            }
        }
        UNROLL
        for (int r = 0; r < 4; r++) {
            UNROLL
            for (int c = 0; c < 4; c++) {
                int at = column + c * apart;
                if (row + r < rows && at < columns) store(row + r, at, sums[r][c]);
            }
        }
    }
}

// Copies what belongs to the lanes of rows of all heads, times `factor`.
__device__ inline void load_lanes(
    const Grouped& of, const GroupedLanes& lanes, const float* from, i64 stride, float factor, float* to
) {
    for (int i = threadIdx.x; i < lanes.count * of.dim; i += blockDim.x) {
        int lane = i / of.dim, e = i % of.dim;
        i64 row = lane_row(lanes, lane, of.heads), head = row % of.heads;
        to[lane * pitch_of(of) + e] = from[row / of.heads * stride + head * of.dim + e] * factor;
    }
}

// Where a key of a row lies among all keys.
__device__ inline int key_place(const GroupedLanes& lanes, int key) {
    return key < lanes.of.before ? lanes.of.prefix + key : lanes.of.keys + key - lanes.of.before;
}

// Copies what belongs to the block's group of `count` rows of all groups; `place(j)` is where the jth lies.
template <class Place>
__device__ inline void load_keys(const Grouped& of, const float* from, i64 stride, int count, float* to, Place place) {
    for (int i = threadIdx.x; i < count * of.dim; i += blockDim.x) {
        int j = i / of.dim, e = i % of.dim;
        to[j * pitch_of(of) + e] = from[place(j) * stride + (int)blockIdx.y * of.dim + e];
    }
}

// work(first, count) for each block of keys that the lanes see: which of its row's keys the first one is, and how many they
// are. The blocks are those of the CPU, whatever part of its lanes these are.
template <class Work>
__device__ inline void for_keys(const GroupedLanes& lanes, Work work) {
    int from = lane_end(lanes, 0) - lanes.window, to = lane_end(lanes, lanes.count - 1), until = wanted_to(lanes);
    for (int first = wanted_from(lanes) / ATTEND_KEYS * ATTEND_KEYS; first < until; first += ATTEND_KEYS) {
        int count = smaller(ATTEND_KEYS, until - first);
        if (first + count > from && first < to) work(first, count);
    }
}

// The scores of queries and keys, without the cap, in rows of `pitch`; everyone's are there in the end.
__device__ inline void grouped_scores(
    const Grouped& of, int lanes, int count, const float* queries, const float* keys, int pitch, float* scores
) {
    grouped_products(
        lanes, count, of.dim, [&](int lane, int e) { return queries[lane * pitch_of(of) + e]; },
        [&](int j, int e) { return keys[j * pitch_of(of) + e]; },
        [&](int lane, int j, float score) { scores[lane * pitch + j] = score; }
    );
    __syncthreads();
}

__device__ inline float capped(const Grouped& of, float score) {
    return of.cap > 0.0f ? of.cap * hyperbolic_tangent(score * of.inverse) : score;
}

#endif
