//! Causal multi-head self-attention, fused: scores, softmax and products of some queries stay in the cache. The forward keeps
//! nothing; the backward computes the probabilities again, which is cheap where T is short.
//!
//! Each lane of a vector is a head of a sequence, so that nothing is padded to vectors and no sum goes across one, and what a
//! query does not see is hardly computed.

use crate::{
    buffer::{by_dtype, element_type, elements, filled, read, stored},
    cuda,
    dispatch::{Isa, dispatch},
    float::{Float, LANES, by_lane, one_by_one, tree_of_lanes},
    lanes::{
        Factor, TILE, Vector,
        places::{Places, gather, scatter},
        product,
    },
    par, reference,
};
#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// Sequences that one thread takes at a time: some whole vectors of heads.
const SEQUENCES: usize = LANES;
/// Queries at a time.
const QUERIES: usize = 2 * TILE;

/// `softmax(q·kᵀ/√(d/heads), causal)·v` per head: `qkv` (B, T, 3d) holds queries, keys and values beside each other,
/// each of them `heads` times d/heads wide; gives (B, T, d).
pub fn causal_attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (_, t, packed) = qkv.dims3()?;
    if heads == 0 || t == 0 || packed == 0 || packed % (3 * heads) != 0 {
        candle_core::bail!("causal_attention: qkv (B, T, 3d) of {:?} does not divide into {heads} heads", qkv.dims());
    }
    if cuda::is_candles(qkv) {
        return reference::causal_attention(qkv, heads);
    }
    qkv.contiguous()?.apply_op1(CausalAttention { heads })
}

struct CausalAttention {
    heads: usize,
}

impl CustomOp1 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, t, packed) = layout.shape().dims3()?;
        let size = Size::new(t, packed, self.heads);
        by_dtype!(element_type(qkv), self.name(), T => {
            let qkv = elements::<T>(qkv, layout)?;
            let fill = |out: &mut [MaybeUninit<T>]| {
                let jobs = out.chunks_mut(SEQUENCES * t * size.d).zip(qkv.chunks(SEQUENCES * t * packed));
                par::each(batch * t * t * self.heads, jobs, |(out, qkv)| forward(qkv, size, out));
            };
            // SAFETY: `out` and `qkv` hold as many sequences, and `forward` writes every head of every position.
            let (out, ()) = unsafe { filled(batch * t * size.d, fill) };
            Ok((stored(out), (batch, t, size.d).into()))
        })
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::tensors::causal_attention(self.heads, (qkv, layout))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "candle-cuda")]
        if qkv.device().is_cuda() {
            return cuda::tensors::causal_attention_backward(self.heads, [qkv, &grad.contiguous()?]).map(Some);
        }
        let (batch, t, packed) = qkv.dims3()?;
        let (shape, device, grad) = (qkv.shape(), qkv.device(), &grad.contiguous()?);
        let size = Size::new(t, packed, self.heads);
        by_dtype!(qkv.dtype(), self.name(), T => {
            read!(qkv, grad: T);
            let len = SEQUENCES * t * packed;
            let fill = |out: &mut [MaybeUninit<T>]| {
                let jobs = out.chunks_mut(len).zip(qkv.chunks(len)).zip(grad.chunks(SEQUENCES * t * size.d));
                par::each(batch * t * t * self.heads, jobs, |((out, qkv), grad)| backward(qkv, grad, size, out));
            };
            // SAFETY: `out`, `qkv` and `grad` hold as many sequences, and `backward` writes all that `forward` reads.
            let (out, ()) = unsafe { filled(batch * t * packed, fill) };
            Ok(Some(Tensor::from_vec(out, shape, device)?))
        })
    }
}

/// Shape of one sequence.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    t: usize,
    d: usize,
    heads: usize,
    /// d/heads, and the same rounded up to whole tiles.
    head: usize,
    wide: usize,
    /// T rounded up.
    long: usize,
}

impl Size {
    pub(crate) fn new(t: usize, packed: usize, heads: usize) -> Self {
        let d = packed / 3;
        let head = d / heads;
        let [wide, long] = [head, t].map(|n| n.next_multiple_of(TILE));
        Self { t, d, heads, head, wide, long }
    }

    /// The heads of so many sequences, a vector of them after the other. Lanes for which there is none repeat the last.
    fn vectors(self, sequences: usize) -> impl Iterator<Item = Heads> {
        let (all, Self { t, heads, head, .. }) = (sequences * self.heads, self);
        (0..all).step_by(LANES).map(move |first| {
            let of: [usize; LANES] = std::array::from_fn(|lane| (first + lane).min(all - 1));
            Heads { tokens: of.map(|of| of / heads * t), columns: of.map(|of| of % heads * head), d: self.d }
        })
    }

    /// Its queries, some after the other.
    fn queries(self) -> impl Iterator<Item = Queries> {
        let queries = move |first| Queries { first, end: self.long.min(first + QUERIES), size: self };
        (0..self.t).step_by(QUERIES).map(queries)
    }
}

/// Which head of which sequence each lane is: the sequence's first token among all, and the head's first column.
struct Heads {
    tokens: [usize; LANES],
    columns: [usize; LANES],
    d: usize,
}

impl Heads {
    /// Where a token of them lies in rows that are `times` d wide, of which a head has its part of the first d.
    #[inline(always)]
    fn places(&self, token: usize, times: usize) -> Places {
        let (stride, mut first) = (times * self.d, self.columns);
        first.iter_mut().zip(&self.tokens).for_each(|(first, tokens)| *first += (tokens + token) * stride);
        Places { first, stride }
    }
}

/// Some queries: whole tiles, of which the last may be more than there are.
struct Queries {
    first: usize,
    end: usize,
    size: Size,
}

impl Queries {
    fn count(&self) -> usize {
        self.end - self.first
    }

    /// Those that there are.
    fn real(&self) -> usize {
        self.size.t.min(self.end) - self.first
    }

    /// Their tiles: the first of each.
    fn tiles(&self) -> impl Iterator<Item = usize> {
        (0..self.count()).step_by(TILE)
    }

    /// Keys that a query sees.
    fn seen_by(&self, query: usize) -> usize {
        self.first + query + 1
    }

    /// Keys that any query of its tile does.
    fn seen_by_tile(&self, query: usize) -> usize {
        self.seen_by(query).next_multiple_of(TILE)
    }

    /// Each query and its row of a matrix (queries, keys), as far as its tile sees.
    fn rows_of<'a, T>(&self, matrix: &'a mut [Vector<T>]) -> impl Iterator<Item = (usize, &'a mut [Vector<T>])> {
        let rows = matrix.chunks_exact_mut(self.size.long).take(self.count()).enumerate();
        rows.map(|(query, row)| (query, &mut row[..self.seen_by_tile(query)]))
    }
}

/// What attention works in, for a vector of heads: (long, wide) for what belongs to keys, (queries, wide) for what belongs to
/// queries, (queries, long) for probabilities and what is like them.
struct Scratch<'a, T> {
    size: Size,
    q: &'a mut [Vector<T>],
    k: &'a mut [Vector<T>],
    v: &'a mut [Vector<T>],
    probabilities: &'a mut [Vector<T>],
    /// A row for each query, of the output or of its gradient by them.
    out: &'a mut [Vector<T>],
    sums: Partial<T>,
    back: Back<'a, T>,
}

/// What the backward needs beside it.
struct Back<'a, T> {
    grad: &'a mut [Vector<T>],
    /// The gradient by probabilities, then by scores.
    slopes: &'a mut [Vector<T>],
    /// Keys times 1/√(d/heads).
    scaled: &'a mut [Vector<T>],
    dk: &'a mut [Vector<T>],
    dv: &'a mut [Vector<T>],
}

/// Partial sums over the keys that are as many vectors apart.
type Partial<T> = [Vector<T>; LANES];

/// A key's partial sum before anything is added to it. Nothing needs to have been written there before the first.
#[inline(always)]
fn before<T: Float>(sums: &Partial<T>, key: usize) -> Vector<T> {
    if key < LANES { [T::zero(); LANES] } else { sums[key % LANES] }
}

/// Ends a sum over keys, of which there are so many.
#[inline(always)]
fn summed<T: Float>(sums: &mut Partial<T>, keys: usize) -> Vector<T> {
    sums.iter_mut().skip(keys).for_each(|sum| *sum = [T::zero(); LANES]);
    tree_of_lanes(sums)
}

impl<'a, T: Float> Scratch<'a, T> {
    /// In memory that may hold anything.
    fn new(size: Size, memory: &'a mut Vec<Vector<T>>) -> Self {
        let [keys, queries, pairs] = [size.long * size.wide, QUERIES * size.wide, QUERIES * size.long];
        let all = 5 * keys + 3 * queries + 2 * pairs;
        memory.resize(all.max(memory.len()), [T::zero(); LANES]);
        let mut rest = memory.as_mut_slice();
        let mut part = |len: usize| rest.split_off_mut(..len).expect("counted above");
        let [q, out, grad] = std::array::from_fn(|_| part(queries));
        let [probabilities, slopes] = std::array::from_fn(|_| part(pairs));
        let [k, v, scaled, dk, dv] = std::array::from_fn(|_| part(keys));
        let back = Back { grad, slopes, scaled, dk, dv };
        Self { size, q, k, v, probabilities, out, sums: [[T::zero(); LANES]; LANES], back }
    }

    /// Loads keys and values, zeros where the last tile has more than there are.
    #[inline(always)]
    fn load<I: Isa>(&mut self, qkv: &[T], heads: &Heads) {
        let Size { t, d, head, wide, .. } = self.size;
        let at = heads.places(0, 3);
        for (to, offset) in [(&mut *self.k, d), (&mut *self.v, 2 * d)] {
            gather::<T, I>((to, wide), qkv, &at.plus(offset), [t, head]);
            to[t * wide..].fill([T::zero(); LANES]);
        }
    }

    /// Loads some queries, scaled by 1/√(d/heads), and computes their probabilities: zeros for the keys of a tile that a query
    /// does not see.
    #[inline(always)]
    fn attend<I: Isa>(&mut self, qkv: &[T], heads: &Heads, queries: &Queries) {
        load_queries::<T, I>(self.q, qkv, heads.places(queries.first, 3), queries);
        multiply(self.q, scale(self.size));
        scores::<T, I>(self.probabilities, [self.q, self.k], queries);
        for (query, scores) in queries.rows_of(self.probabilities) {
            softmax::<T, I>(scores, &mut self.sums, queries.seen_by(query));
        }
    }

    /// From probabilities and the gradient of the output, to the gradient by values, to which these queries add, and by scores.
    #[inline(always)]
    fn slopes<I: Isa>(&mut self, grad: &[T], heads: &Heads, queries: &Queries) {
        let Self { v, probabilities, sums, back, .. } = self;
        load_queries::<T, I>(back.grad, grad, heads.places(queries.first, 1), queries);
        by_key::<T, I>(back.dv, [probabilities, back.grad], queries);
        scores::<T, I>(back.slopes, [back.grad, v], queries);
        for ((query, slopes), p) in queries.rows_of(back.slopes).zip(probabilities.chunks_exact(self.size.long)) {
            softmax_slopes(slopes, p, sums, queries.seen_by(query));
        }
    }
}

/// Softmax of a query's scores, with zeros for keys that are not `seen`.
#[inline(always)]
fn softmax<T: Float, I: Isa>(scores: &mut [Vector<T>], sums: &mut Partial<T>, seen: usize) {
    let (scores, unseen) = scores.split_at_mut(seen);
    let mut largest = scores[0];
    for score in scores.iter() {
        one_by_one();
        for (largest, &score) in largest.iter_mut().zip(score) {
            *largest = if score > *largest { score } else { *largest };
        }
    }
    for score in scores.iter_mut() {
        one_by_one();
        for (score, &largest) in score.iter_mut().zip(&largest) {
            *score = (*score - largest).exponential::<I>();
        }
    }
    for (key, e) in scores.iter().enumerate() {
        one_by_one();
        sums[key % LANES] = by_lane([&before(sums, key), e], |[sum, e]| sum + e);
    }
    let total = summed(sums, seen);
    let scale = by_lane([&total], |[total]| T::one() / total);
    for e in scores {
        one_by_one();
        for (e, &scale) in e.iter_mut().zip(&scale) {
            *e *= scale;
        }
    }
    unseen.fill([T::zero(); LANES]);
}

fn scale<T: Float>(size: Size) -> T {
    T::of(1.0 / (size.head as f64).sqrt())
}

#[inline(always)]
fn multiply<T: Float>(vectors: &mut [Vector<T>], by: T) {
    vectors.as_flattened_mut().iter_mut().for_each(|x| *x *= by);
}

#[inline(always)]
fn multiplied<T: Float>(to: &mut [Vector<T>], from: &[Vector<T>], by: T) {
    to.as_flattened_mut().iter_mut().zip(from.as_flattened()).for_each(|(to, &from)| *to = from * by);
}

/// Loads rows of some queries, zeros where a tile has more than there are.
#[inline(always)]
fn load_queries<T: Float, I: Isa>(to: &mut [Vector<T>], from: &[T], at: Places, queries: &Queries) {
    let Size { head, wide, .. } = queries.size;
    gather::<T, I>((to, wide), from, &at, [queries.real(), head]);
    to[queries.real() * wide..queries.count() * wide].fill([T::zero(); LANES]);
}

/// (queries, keys) from rows of both, for the tiles of which a query sees a key.
#[inline(always)]
fn scores<T: Float, I: Isa>(out: &mut [Vector<T>], [rows, keys]: [&[Vector<T>]; 2], queries: &Queries) {
    let Size { head, wide, long, .. } = queries.size;
    for query in queries.tiles() {
        let factors = [Factor(&rows[query * wide..], wide, 1), Factor(keys, wide, 1)];
        let shape = [TILE, queries.seen_by_tile(query), head];
        product::<T, I>((&mut out[query * long..], long), factors, shape, false);
    }
}

/// `out = matrix·rows` for a matrix (queries, keys): a row for each query, summed over the keys.
#[inline(always)]
fn by_query<T: Float, I: Isa>(out: &mut [Vector<T>], [matrix, rows]: [&[Vector<T>]; 2], queries: &Queries) {
    let Size { wide, long, .. } = queries.size;
    for query in queries.tiles() {
        let factors = [Factor(&matrix[query * long..], long, 1), Factor(rows, 1, wide)];
        let shape = [TILE, wide, queries.seen_by_tile(query)];
        product::<T, I>((&mut out[query * wide..], wide), factors, shape, false);
    }
}

/// `out += matrixᵀ·rows` for such a matrix: a row for each key, summed over these queries after those before them.
#[inline(always)]
fn by_key<T: Float, I: Isa>(out: &mut [Vector<T>], [matrix, rows]: [&[Vector<T>]; 2], queries: &Queries) {
    let Size { wide, long, .. } = queries.size;
    for key in (0..queries.end).step_by(TILE) {
        let first = key.saturating_sub(queries.first);
        let factors = [Factor(&matrix[first * long + key..], 1, long), Factor(&rows[first * wide..], 1, wide)];
        let shape = [TILE, wide, queries.count() - first];
        product::<T, I>((&mut out[key * wide..], wide), factors, shape, key < queries.first);
    }
}

dispatch! {
    pub(crate) fn forward<T: Float, I: Isa>(qkv: &[T], size: Size, out: &mut [MaybeUninit<T>]) {
        let mut room = T::room().take();
        let mut scratch = Scratch::new(size, &mut room);
        for heads in size.vectors(out.len() / (size.t * size.d)) {
            scratch.load::<I>(qkv, &heads);
            for queries in size.queries() {
                scratch.attend::<I>(qkv, &heads, &queries);
                let Scratch { probabilities, v, out: rows, .. } = &mut scratch;
                by_query::<T, I>(rows, [probabilities, v], &queries);
                scatter::<T, I>(out, &heads.places(queries.first, 1), (rows, size.wide), [queries.real(), size.head]);
            }
        }
        T::room().set(room);
    }
}

dispatch! {
    /// With P the probabilities and G the gradient: dV = Pᵀ·G, dP = G·Vᵀ, dS = P∘(dP − Σ P∘dP), dQ = dS·K, dK = dSᵀ·Q.
    pub(crate) fn backward<T: Float, I: Isa>(qkv: &[T], grad: &[T], size: Size, out: &mut [MaybeUninit<T>]) {
        let Size { t, d, head, wide, .. } = size;
        let mut room = T::room().take();
        let mut scratch = Scratch::new(size, &mut room);
        for heads in size.vectors(grad.len() / (t * d)) {
            scratch.load::<I>(qkv, &heads);
            multiplied(scratch.back.scaled, scratch.k, scale(size));
            for queries in size.queries() {
                scratch.attend::<I>(qkv, &heads, &queries);
                scratch.slopes::<I>(grad, &heads, &queries);
                let Scratch { q, out: rows, back: Back { slopes, scaled, dk, .. }, .. } = &mut scratch;
                by_key::<T, I>(dk, [slopes, q], &queries);
                by_query::<T, I>(rows, [slopes, scaled], &queries);
                scatter::<T, I>(out, &heads.places(queries.first, 3), (rows, wide), [queries.real(), head]);
            }
            let (at, Back { dk, dv, .. }) = (heads.places(0, 3), &scratch.back);
            scatter::<T, I>(out, &at.plus(d), (dk, wide), [t, head]);
            scatter::<T, I>(out, &at.plus(2 * d), (dv, wide), [t, head]);
        }
        T::room().set(room);
    }
}

/// Turns the gradient of a query's probabilities into that of its scores, with zeros for keys that are not `seen`.
#[inline(always)]
fn softmax_slopes<T: Float>(slopes: &mut [Vector<T>], probabilities: &[Vector<T>], sums: &mut Partial<T>, seen: usize) {
    let (slopes, unseen) = slopes.split_at_mut(seen);
    for (key, (slope, p)) in slopes.iter().zip(probabilities).enumerate() {
        one_by_one();
        sums[key % LANES] = by_lane([&before(sums, key), slope, p], |[sum, slope, p]| sum + slope * p);
    }
    let mean = summed(sums, seen);
    for (slope, p) in slopes.iter_mut().zip(probabilities) {
        one_by_one();
        *slope = by_lane([slope, p, &mean], |[slope, p, mean]| p * (slope - mean));
    }
    unseen.fill([T::zero(); LANES]);
}
