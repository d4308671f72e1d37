// Attention with grouped queries: the forward (see attend.cuh).
#include "attend.cuh"

// Scores, running results of the lanes and factors by which they shrink, in shared memory.
struct Softmax {
    float *scores, *largest, *factors;
};

__device__ inline void cap_scores(const Grouped& of, int lanes, int count, float* scores) {
    for (int i = threadIdx.x; i < lanes * count; i += blockDim.x) {
        float* score = scores + i / count * ATTEND_PITCH + i % count;
        *score = capped(of, *score);
    }
    __syncthreads();
}

// The lane's largest score so far, and by how much what was computed before shrinks.
__device__ inline void raise_largest(const GroupedLanes& lanes, int lane, int first, int count, const Softmax& of) {
    float largest = of.largest[lane];
    for (int j = 0; j < count; j++) {
        float score = of.scores[lane * ATTEND_PITCH + j];
        largest = lane_sees(lanes, lane, first + j) && score > largest ? score : largest;
    }
    of.factors[lane] = exponential(of.largest[lane] - largest);
    of.largest[lane] = largest;
}

// From scores to exponentials relative to the largest one, zero where a lane does not see the key.
__device__ inline void exponentials(const GroupedLanes& lanes, int first, int count, const Softmax& of) {
    for (int i = threadIdx.x; i < lanes.count * count; i += blockDim.x) {
        int lane = i / count, j = i % count;
        float* score = of.scores + lane * ATTEND_PITCH + j;
        *score = lane_sees(lanes, lane, first + j) ? exponential(*score - of.largest[lane]) : 0.0f;
    }
}

// Shrinks the lanes' sums and adds the values, weighted by the exponentials.
__device__ inline void add_values(
    const Grouped& of, int lanes, int count, const Softmax& softmax, const float* values, float* sums
) {
    grouped_products(
        lanes, of.dim, count, [&](int lane, int j) { return softmax.scores[lane * ATTEND_PITCH + j]; },
        [&](int e, int j) { return values[j * pitch_of(of) + e]; },
        [&](int lane, int e, float sum) {
            float* to = sums + lane * pitch_of(of) + e;
            *to = *to * softmax.factors[lane] + sum;
        }
    );
}

// Divides the lanes' sums by the totals, whose inverse stand at `shares`.
__device__ inline void store_lanes(
    const Grouped& of, const GroupedLanes& lanes, const float* sums, const float* shares, float* out
) {
    for (int i = threadIdx.x; i < lanes.count * of.dim; i += blockDim.x) {
        int lane = i / of.dim, e = i % of.dim;
        out[lane_row(lanes, lane, of.heads) * of.dim + e] = sums[lane * pitch_of(of) + e] * shares[lane];
    }
}

// (N, H, D), and of each query and head the largest score and 1 / the sum of exponentials to `kept` (N, H, 2), unless it
// is null. A lane's sums run over its keys in order. Grid (blocks * splits, G).
extern "C" __global__ void attend_forward(
    const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v, Grouped of,
    const GroupedBlock* __restrict__ blocks, int splits, float* __restrict__ out, float* __restrict__ kept
) {
    DYNAMIC_SHARED(float, attend_memory);
    GroupedLanes lanes = lanes_of(of, blocks[blockIdx.x / splits], blockIdx.x % splits * of.lanes);
    if (lanes.count <= 0) return;
    // The thread that keeps the softmax of a lane up to date.
    int mine = threadIdx.x, room = of.lanes * pitch_of(of);
    bool leads = mine < lanes.count;
    float *queries = attend_memory, *sums = queries + room, *tile = sums + room, total = 0.0f;
    float *scores = tile + ATTEND_KEYS * pitch_of(of), *largest = scores + of.lanes * ATTEND_PITCH;
    Softmax softmax = {scores, largest, largest + of.lanes};
    load_lanes(of, lanes, q, of.q_stride, of.scale, queries);
    for (int i = threadIdx.x; i < room; i += blockDim.x) sums[i] = 0.0f;
    if (leads) largest[mine] = ATTEND_LOW;
    for_keys(lanes, [&](int first, int count) {
        auto place = [&](int j) { return (i64)key_place(lanes, first + j); };
        load_keys(of, k, of.k_stride, count, tile, place);
        __syncthreads();
        grouped_scores(of, lanes.count, count, queries, tile, ATTEND_PITCH, scores);
        if (of.cap > 0.0f) cap_scores(of, lanes.count, count, scores);
        if (leads) raise_largest(lanes, mine, first, count, softmax);
        load_keys(of, v, of.v_stride, count, tile, place);
        __syncthreads();
        exponentials(lanes, first, count, softmax);
        __syncthreads();
        if (leads) {
            total *= softmax.factors[mine];
            for (int j = 0; j < count; j++) total += scores[mine * ATTEND_PITCH + j];
        }
        add_values(of, lanes.count, count, softmax, tile, sums);
        __syncthreads();
    });
    if (leads) {
        float share = softmax.factors[mine] = 1.0f / total;
        i64 at = 2 * lane_row(lanes, mine, of.heads);
        if (kept) kept[at] = largest[mine], kept[at + 1] = share;
    }
    __syncthreads();
    store_lanes(of, lanes, sums, softmax.factors, out);
}
