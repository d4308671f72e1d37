// Attention with grouped queries: the backward (see attend.cuh). With P the probabilities and G the gradient: dV = P'G,
// dP = GV', dS = P(dP - sum P dP), dQ = dS K, dK = dS'Q.
//
// The probabilities are computed again from each lane's largest score and its share, 1 / the sum of exponentials, once
// for the queries and once for the keys, so that each gradient is written by one block, in one order.
#include "attend.cuh"

// Keys that one block of threads has the gradients of, and the blocks of queries that see them, in order.
struct GroupedPiece {
    int row, count, first, entries;
};
struct GroupedEntry {
    // Index of the block, and which of its row's keys the first of the piece is.
    int block, position;
};

// Of each query and head the sum of grad * out, which is that of probabilities and their slopes: both (rows, dim) dense,
// to `means` (rows). Half a warp takes a row: 16 partial sums, added as on the CPU. Grid (rows / half warps of a block).
extern "C" __global__ void attend_means(
    const float* __restrict__ grad, const float* __restrict__ out, int rows, int dim, float* __restrict__ means
) {
    const int HALF = WARP / 2;
    i64 row = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / HALF;
    bool there = row < rows;
    i64 at = (there ? row : rows - 1) * dim;
    float sum = 0.0f;
    for (int e = threadIdx.x % HALF; e < dim; e += HALF) sum += grad[at + e] * out[at + e];
    for (int offset = HALF / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (there && threadIdx.x % HALF == 0) means[row] = sum;
}

// Lanes' probabilities and slopes (of the cap, then of scores) in rows of `pitch`; their largest scores, shares and what
// `attend_means` gave.
struct Softened {
    int pitch;
    float *probabilities, *slopes, *largest, *shares, *means;
};

__device__ inline Softened softened_at(float* memory, int lanes, int pitch) {
    float *slopes = memory + lanes * pitch, *largest = slopes + lanes * pitch, *shares = largest + lanes;
    return {pitch, memory, slopes, largest, shares, shares + lanes};
}

__device__ inline void load_norms(
    const Grouped& of, const GroupedLanes& lanes, const float* kept, const float* means, const Softened& to
) {
    for (int lane = threadIdx.x; lane < lanes.count; lane += blockDim.x) {
        i64 at = lane_row(lanes, lane, of.heads);
        to.largest[lane] = kept[2 * at], to.shares[lane] = kept[2 * at + 1], to.means[lane] = means[at];
    }
}

// Probabilities of the keys from `position` on, and the slopes of the cap.
__device__ inline void probabilities_of(
    const Grouped& of, const GroupedLanes& lanes, int position, int count, const float* queries, const float* keys,
    const Softened& to
) {
    grouped_scores(of, lanes.count, count, queries, keys, to.pitch, to.probabilities);
    for (int i = threadIdx.x; i < lanes.count * count; i += blockDim.x) {
        int lane = i / count, j = i % count, at = lane * to.pitch + j;
        float score = capped(of, to.probabilities[at]), tangent = score * of.inverse;
        float p = exponential(score - to.largest[lane]) * to.shares[lane];
        to.slopes[at] = 1.0f - tangent * tangent;
        to.probabilities[at] = lane_sees(lanes, lane, position + j) ? p : 0.0f;
    }
}

// The gradients of scores.
__device__ inline void slopes_of(
    const Grouped& of, int lanes, int count, const float* grads, const float* values, const Softened& to
) {
    grouped_products(
        lanes, count, of.dim, [&](int lane, int e) { return grads[lane * pitch_of(of) + e]; },
        [&](int j, int e) { return values[j * pitch_of(of) + e]; },
        [&](int lane, int j, float sum) {
            float* slope = to.slopes + lane * to.pitch + j;
            float of_score = to.probabilities[lane * to.pitch + j] * (sum - to.means[lane]);
            *slope = of.cap > 0.0f ? of_score * *slope : of_score;
        }
    );
}

// Adds to the lanes' sums the keys, weighted by the slopes.
__device__ inline void add_to_queries(
    const Grouped& of, int lanes, int count, const Softened& softened, const float* keys, float* sums
) {
    grouped_products(
        lanes, of.dim, count, [&](int lane, int j) { return softened.slopes[lane * softened.pitch + j]; },
        [&](int e, int j) { return keys[j * pitch_of(of) + e]; },
        [&](int lane, int e, float sum) { sums[lane * pitch_of(of) + e] += sum; }
    );
}

// The gradient by the queries, (N, H, D), from that by the output, what the forward kept and `attend_means`. Grid
// (blocks * splits, G).
extern "C" __global__ void attend_backward_queries(
    const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v, Grouped of,
    const GroupedBlock* __restrict__ blocks, int splits, const float* __restrict__ grad,
    const float* __restrict__ means, const float* __restrict__ kept, float* __restrict__ dq
) {
    DYNAMIC_SHARED(float, attend_memory);
    GroupedLanes lanes = lanes_of(of, blocks[blockIdx.x / splits], blockIdx.x % splits * of.lanes);
    if (lanes.count <= 0) return;
    int room = of.lanes * pitch_of(of);
    float *queries = attend_memory, *grads = queries + room, *sums = grads + room, *tile = sums + room;
    Softened softened = softened_at(tile + ATTEND_KEYS * pitch_of(of), of.lanes, ATTEND_PITCH);
    load_lanes(of, lanes, q, of.q_stride, of.scale, queries);
    load_lanes(of, lanes, grad, (i64)of.heads * of.dim, 1.0f, grads);
    load_norms(of, lanes, kept, means, softened);
    for (int i = threadIdx.x; i < room; i += blockDim.x) sums[i] = 0.0f;
    for_keys(lanes, [&](int first, int count) {
        auto place = [&](int j) { return (i64)key_place(lanes, first + j); };
        load_keys(of, k, of.k_stride, count, tile, place);
        __syncthreads();
        probabilities_of(of, lanes, first, count, queries, tile, softened);
        __syncthreads();
        load_keys(of, v, of.v_stride, count, tile, place);
        __syncthreads();
        slopes_of(of, lanes.count, count, grads, tile, softened);
        __syncthreads();
        load_keys(of, k, of.k_stride, count, tile, place);
        __syncthreads();
        add_to_queries(of, lanes.count, count, softened, tile, sums);
        __syncthreads();
    });
    for (int i = threadIdx.x; i < lanes.count * of.dim; i += blockDim.x) {
        int lane = i / of.dim, e = i % of.dim;
        dq[lane_row(lanes, lane, of.heads) * of.dim + e] = sums[lane * pitch_of(of) + e] * of.scale;
    }
}

// A row of the gradient by keys or values, of this block's group.
__device__ inline float* key_row(const Grouped& of, float* gradient, int row) {
    return gradient + ((i64)row * of.groups + (int)blockIdx.y) * of.dim;
}

__device__ inline void clear_keys(const Grouped& of, const GroupedPiece& piece, float* gradient) {
    for (int i = threadIdx.x; i < piece.count * of.dim; i += blockDim.x) {
        key_row(of, gradient, piece.row + i / of.dim)[i % of.dim] = 0.0f;
    }
}

// Adds to a piece's rows of a gradient what one block of queries gives: the sum over its lanes of weights times rows.
__device__ inline void add_to_keys(
    const Grouped& of, const GroupedLanes& lanes, const GroupedPiece& piece, int position, const float* weights,
    int pitch, const float* rows, float* gradient
) {
    grouped_products(
        piece.count, of.dim, lanes.count, [&](int j, int lane) { return weights[lane * pitch + j]; },
        [&](int e, int lane) { return rows[lane * pitch_of(of) + e]; },
        [&](int j, int e, float sum) {
            int key = position + j;
            if (key < wanted_from(lanes) || key >= wanted_to(lanes)) return;
            key_row(of, gradient, piece.row + j)[e] += sum;
        }
    );
}

// The gradients by keys and values, (M, G, D), either of which may be null; every row is in one of the pieces of at most
// `keys` rows, and all lanes of a block of queries are taken at a time. Grid (pieces, G).
extern "C" __global__ void attend_backward_keys(
    const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v, Grouped of,
    const GroupedBlock* __restrict__ blocks, const GroupedPiece* __restrict__ pieces,
    const GroupedEntry* __restrict__ entries, int keys, const float* __restrict__ grad,
    const float* __restrict__ means, const float* __restrict__ kept, float* __restrict__ dk, float* __restrict__ dv
) {
    DYNAMIC_SHARED(float, attend_memory);
    GroupedPiece piece = pieces[blockIdx.x];
    float *key_tile = attend_memory, *values = key_tile + keys * pitch_of(of), *rows = values + keys * pitch_of(of);
    Softened softened = softened_at(rows + of.lanes * pitch_of(of), of.lanes, keys | 1);
    auto row = [&](int j) { return (i64)piece.row + j; };
    load_keys(of, k, of.k_stride, piece.count, key_tile, row);
    load_keys(of, v, of.v_stride, piece.count, values, row);
    if (dk) clear_keys(of, piece, dk);
    if (dv) clear_keys(of, piece, dv);
    for (int i = 0; i < piece.entries; i++) {
        GroupedEntry entry = entries[piece.first + i];
        GroupedLanes lanes = lanes_of(of, blocks[entry.block], 0);
        load_lanes(of, lanes, q, of.q_stride, of.scale, rows);
        load_norms(of, lanes, kept, means, softened);
        __syncthreads();
        probabilities_of(of, lanes, entry.position, piece.count, rows, key_tile, softened);
        __syncthreads();
        load_lanes(of, lanes, grad, (i64)of.heads * of.dim, 1.0f, rows);
        __syncthreads();
        if (dv) add_to_keys(of, lanes, piece, entry.position, softened.probabilities, softened.pitch, rows, dv);
        if (dk) slopes_of(of, lanes.count, piece.count, rows, values, softened);
        __syncthreads();
        if (!dk) continue;
        load_lanes(of, lanes, q, of.q_stride, of.scale, rows);
        __syncthreads();
        add_to_keys(of, lanes, piece, entry.position, softened.slopes, softened.pitch, rows, dk);
        __syncthreads();
    }
}
