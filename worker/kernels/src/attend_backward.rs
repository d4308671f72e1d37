//! The backward of [`attend`](crate::attend()).
//!
//! With P the probabilities, G the gradient, S the scores: dV = Pᵀ·G, dP = G·Vᵀ, dS = P∘(dP − Σ G∘out), times the slope
//! of the cap, dQ = dS·K, dK = dSᵀ·Q. What is added to a key comes from one thread, in order: of the spans that have it
//! if they share none, else of all spans.

use crate::{
    Attend, Span,
    attend_block::{Inputs, KEYS, Keys, Lanes, Scratch, blocks, vectors},
    buffer::{Rows, filled, read, read_rows},
    dispatch::{Isa, dispatch},
    float::{Float, LANES},
    linear::Gradients,
    par::{self, Shared},
    tile::{Left, Wanted, add_product, product},
    transpose::transpose,
};
use candle_core::{Result, Tensor};
use std::{mem::MaybeUninit, ops::Range};

/// Gradients of `q`, `k` and `v`, where wanted, from the result, what the forward kept, and the result's gradient.
pub fn gradients<T: Float>(
    [q, k, v]: [&Tensor; 3],
    [out, kept, grad]: [&Tensor; 3],
    spans: &[Span],
    how: &Attend,
) -> Result<Gradients> {
    let (tensors, wants, dim) = ([q, k, v], [q, k, v].map(Tensor::track_op), q.dim(2)?);
    read_rows!(q, k, v: T, 2);
    read!(out, kept, grad: T);
    let inputs = Inputs { q, k, v, dim, how };
    let given = Given { out: Rows::dense(out, q.width), grad: Rows::dense(grad, q.width), kept };
    let jobs = jobs(spans, inputs.heads(), inputs.groups());
    let scores = jobs.iter().flatten().map(|block| 3 * block.padded() * block.wanted(how.window).len()).sum();
    let [mut dk, mut dv] = [1, 2].map(|i| vec![T::zero(); if wants[i] { k.count * k.width } else { 0 }]);
    let fill = |dq: &mut [MaybeUninit<T>]| {
        let targets = [dq.as_mut_ptr().cast(), dk.as_mut_ptr(), dv.as_mut_ptr()];
        let targets: [_; 3] = std::array::from_fn(|i| wants[i].then(|| Shared::new(targets[i])));
        par::each(scores, jobs.iter(), |blocks| backward(inputs, given, blocks, targets));
    };
    // SAFETY: the spans cover all queries, and `backward` writes all heads of each, where wanted.
    let (dq, ()) = unsafe { filled(if wants[0] { q.count * q.width } else { 0 }, fill) };
    let [dq, dk, dv] = [dq, dk, dv].map(Some);
    let tensor = |i: usize, data: Option<Vec<T>>| {
        let data = data.filter(|_| wants[i]);
        data.map(|data| Tensor::from_vec(data, tensors[i].shape(), tensors[i].device())).transpose()
    };
    Ok((tensor(0, dq)?, tensor(1, dk)?, tensor(2, dv)?))
}

/// Blocks that one thread computes in order: those of a span and group, or all of a group where spans share keys.
fn jobs(spans: &[Span], heads: usize, groups: usize) -> Vec<Vec<Lanes<'_>>> {
    let together = if share_keys(spans) { spans.len() } else { 1 };
    let spans = spans.chunks(together.max(1)).flat_map(|spans| (0..groups).map(move |group| (spans, group)));
    let of = |(spans, group): (_, usize)| {
        let blocks = <[Span]>::iter(spans).flat_map(|span| blocks(span, heads, groups));
        blocks.filter(|block| block.group == group).collect()
    };
    spans.map(of).collect()
}

fn share_keys(spans: &[Span]) -> bool {
    let ranges = spans.iter().flat_map(|span| [&span.prefix, &span.keys]).filter(|range| !range.is_empty());
    let mut ranges: Vec<&Range<usize>> = ranges.collect();
    ranges.sort_by_key(|range| range.start);
    ranges.windows(2).any(|pair| pair[1].start < pair[0].end)
}

/// What the forward computed, and the gradient.
#[derive(Clone, Copy)]
struct Given<'a, T> {
    out: Rows<'a, T>,
    grad: Rows<'a, T>,
    /// Largest score and 1 / the sum of exponentials of each query and head.
    kept: &'a [T],
}

/// Memory of a block beside what the forward has: rows of the gradient and of dQ, (lanes, wide); the gradient
/// transposed, (wide, lanes); slopes of the cap and dP, then dS: (keys, lanes); dK or dV: (keys, wide).
struct Slopes<T> {
    grad: Vec<T>,
    dq: Vec<T>,
    transposed: Vec<T>,
    cap: Vec<T>,
    scores: Vec<T>,
    keys: Vec<T>,
    /// Σ G∘out of each lane.
    means: Vec<T>,
}

impl<T: Float> Slopes<T> {
    fn new(scratch: &Scratch<T>, capped: bool) -> Self {
        let (lanes, wide) = (scratch.sums.len() * LANES, scratch.wide);
        let zeros = |len: usize| vec![T::zero(); len];
        Self {
            grad: zeros(lanes * wide),
            dq: zeros(lanes * wide),
            transposed: zeros(wide * lanes),
            cap: zeros(if capped { KEYS * lanes } else { 0 }),
            scores: zeros(KEYS * lanes),
            keys: zeros(KEYS * wide),
            means: zeros(lanes),
        }
    }

    #[inline(always)]
    fn begin<I: Isa>(
        &mut self,
        scratch: &mut Scratch<T>,
        inputs: Inputs<'_, T>,
        given: Given<'_, T>,
        block: Lanes<'_>,
    ) {
        scratch.begin::<I>(inputs, block);
        let (lanes, wide, dim) = (block.padded(), scratch.wide, inputs.dim);
        for lane in 0..block.count() {
            let (query, head) = block.at(lane);
            let [grad, out] = [given.grad, given.out].map(|rows| &rows.row(query)[head * dim..][..dim]);
            self.grad[lane * wide..][..dim].copy_from_slice(grad);
            self.means[lane] = I::sum([grad, out], |[grad, out]| grad * out);
            let kept = &given.kept[(query * inputs.heads() + head) * 2..][..2];
            scratch.largest.as_flattened_mut()[lane] = kept[0];
            scratch.sums.as_flattened_mut()[lane] = kept[1];
        }
        transpose::<T, I>(&mut self.transposed, &self.grad, (lanes, wide), (wide, lanes));
        self.dq[..lanes * wide].fill(T::zero());
    }

    /// From scores to probabilities, and the slope of the cap.
    #[inline(always)]
    fn probabilities<I: Isa>(&mut self, scratch: &mut Scratch<T>, softcap: Option<f64>, lanes: usize, keys: &Keys<'_>) {
        if let Some(cap) = softcap {
            let inverse = T::of(1.0 / cap);
            for (slope, &score) in self.cap.iter_mut().zip(&scratch.scores[..keys.count * lanes]) {
                let tangent = score * inverse;
                *slope = T::of(1.0) - tangent * tangent;
            }
        }
        for v in 0..lanes / LANES {
            let (seen, largest, shares) = (scratch.seen[v], scratch.largest[v], scratch.sums[v]);
            for (key, scores) in keys.positions().zip(vectors(&mut scratch.scores, v, lanes)) {
                for lane in 0..LANES {
                    let p = (scores[lane] - largest[lane]).exponential::<I>() * shares[lane];
                    scores[lane] = if seen.by(lane, key) { p } else { T::zero() };
                }
            }
        }
    }

    /// From dP to dS.
    #[inline(always)]
    fn of_scores(&mut self, probabilities: &[T], lanes: usize, keys: &Keys<'_>) {
        let means = &self.means[..lanes];
        for (slopes, p) in self.scores.chunks_exact_mut(lanes).zip(probabilities.chunks_exact(lanes)).take(keys.count) {
            for ((slope, &p), &mean) in slopes.iter_mut().zip(p).zip(means) {
                *slope = p * (*slope - mean);
            }
        }
        if !self.cap.is_empty() {
            for (slope, &cap) in self.scores[..keys.count * lanes].iter_mut().zip(&self.cap) {
                *slope *= cap;
            }
        }
    }
}

dispatch! {
    /// What the blocks add to the gradients, where wanted.
    fn backward<T: Float, I: Isa>(
        inputs: Inputs<'_, T>,
        given: Given<'_, T>,
        blocks: &[Lanes<'_>],
        targets: [Option<Shared<T>>; 3],
    ) {
        let mut scratch = Scratch::new(blocks, inputs.dim);
        let mut slopes = Slopes::new(&scratch, inputs.how.softcap.is_some());
        for block in blocks {
            slopes.begin::<I>(&mut scratch, inputs, given, *block);
            for keys in block.keys(inputs.how.window) {
                scratch.load_keys(inputs, *block, &keys);
                scratch.scores::<I>(inputs.how, *block, &keys);
                slopes.probabilities::<I>(&mut scratch, inputs.how.softcap, block.padded(), &keys);
                block_of_keys::<T, I>(&mut slopes, &scratch, inputs, *block, &keys, targets);
            }
            if let Some(dq) = targets[0] {
                store_queries(&slopes, scratch.wide, inputs, *block, dq);
            }
        }
    }
}

/// Gradients of one block of keys and, added up, of the lanes' queries, from the probabilities.
#[inline(always)]
fn block_of_keys<T: Float, I: Isa>(
    slopes: &mut Slopes<T>,
    scratch: &Scratch<T>,
    inputs: Inputs<'_, T>,
    block: Lanes<'_>,
    keys: &Keys<'_>,
    [dq, dk, dv]: [Option<Shared<T>>; 3],
) {
    let (lanes, wide) = (block.padded(), scratch.wide);
    let by_key = |_| Wanted { terms: 0..block.count(), columns: wide };
    if let Some(dv) = dv {
        let p = Left(&scratch.scores, lanes, 1);
        product::<T, I>(&mut slopes.keys, p, &slopes.grad, (wide, wide), keys.count, by_key);
        add_keys(&slopes.keys, wide, inputs, block, keys, dv);
    }
    if dq.is_none() && dk.is_none() {
        return;
    }
    let v = Left(&scratch.v, wide, 1);
    product::<T, I>(&mut slopes.scores, v, &slopes.transposed, (lanes, lanes), keys.count, |_| Wanted {
        terms: 0..inputs.dim,
        columns: lanes,
    });
    slopes.of_scores(&scratch.scores, lanes, keys);
    if let Some(dk) = dk {
        let ds = Left(&slopes.scores, lanes, 1);
        product::<T, I>(&mut slopes.keys, ds, &scratch.queries, (wide, wide), keys.count, by_key);
        add_keys(&slopes.keys, wide, inputs, block, keys, dk);
    }
    if dq.is_some() {
        let (ds, shape) = (Left(&slopes.scores, 1, lanes), (keys.count, wide));
        add_product::<T, I>(&mut slopes.dq, ds, &scratch.k, (wide, wide), block.count(), shape);
    }
}

#[inline(always)]
fn add_keys<T: Float>(
    from: &[T],
    wide: usize,
    inputs: Inputs<'_, T>,
    block: Lanes<'_>,
    keys: &Keys<'_>,
    target: Shared<T>,
) {
    for (i, from) in from.chunks_exact(wide).enumerate().take(keys.count) {
        // SAFETY: keys that spans share, in this group, are this thread's alone (see `jobs`).
        let to = unsafe { target.part(keys.row(i) * inputs.k.width + block.group * inputs.dim, inputs.dim) };
        for (to, &from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

#[inline(always)]
fn store_queries<T: Float>(slopes: &Slopes<T>, wide: usize, inputs: Inputs<'_, T>, block: Lanes<'_>, dq: Shared<T>) {
    let scale = T::of(inputs.how.scale);
    for lane in 0..block.count() {
        let (query, head) = block.at(lane);
        // SAFETY: no other block has this query and head.
        let to = unsafe { dq.part(query * inputs.q.width + head * inputs.dim, inputs.dim) };
        for (to, &from) in to.iter_mut().zip(&slopes.dq[lane * wide..]) {
            *to = from * scale;
        }
    }
}
