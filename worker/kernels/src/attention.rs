//! Causal multi-head self-attention, fused per sequence and head: scores, softmax and products stay in the first-level
//! cache. The forward keeps nothing; the backward computes the probabilities again, which is cheap where T is short.
//!
//! Scores and probabilities lie as (keys, queries), so that softmax runs along a vector of queries at a time and no sum goes
//! across one.

use crate::{
    buffer::{by_dtype, element_type, elements, filled, read, stored},
    dispatch::{Isa, dispatch},
    float::{Float, LANES, by_lane, tree_of_lanes},
    par,
    tile::{Left, Wanted, product},
    transpose::transpose,
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// Sequences that share one scratch memory.
const SEQUENCES: usize = 4;

/// `softmax(q·kᵀ/√(d/heads), causal)·v` per head: `qkv` (B, T, 3d) holds queries, keys and values beside each other,
/// each of them `heads` times d/heads wide; gives (B, T, d).
pub fn causal_attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (_, t, packed) = qkv.dims3()?;
    if heads == 0 || t == 0 || packed == 0 || packed % (3 * heads) != 0 {
        candle_core::bail!("causal_attention: qkv (B, T, 3d) of {:?} does not divide into {heads} heads", qkv.dims());
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

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
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

/// Shape of one sequence. Scratch matrices are padded to whole vectors, so that no loop has a remainder.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    t: usize,
    d: usize,
    heads: usize,
    /// d/heads, and the same rounded up.
    head: usize,
    wide: usize,
    /// T rounded up.
    long: usize,
}

impl Size {
    pub(crate) fn new(t: usize, packed: usize, heads: usize) -> Self {
        let d = packed / 3;
        let head = d / heads;
        Self { t, d, heads, head, wide: head.next_multiple_of(LANES), long: t.next_multiple_of(LANES) }
    }

    /// Every query looks at the keys up to its own.
    fn keys_of(self, row: usize) -> usize {
        self.long.min(row + crate::tile::TILE_ROWS)
    }
}

/// One head's matrices: (long, wide), (wide, long) where transposed, (keys, queries) for the probabilities.
struct Head<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    transposed: Vec<T>,
    probabilities: Vec<T>,
    out: Vec<T>,
    sums: Box<Partial<T>>,
}

impl<T: Float> Head<T> {
    fn new(size: Size) -> Self {
        let matrix = || vec![T::zero(); size.long * size.wide];
        let probabilities = vec![T::zero(); size.long * size.long];
        let sums = Box::new([[T::zero(); LANES]; LANES]);
        Self { q: matrix(), k: matrix(), v: matrix(), transposed: matrix(), probabilities, out: matrix(), sums }
    }
}

/// Copies a head's columns, which begin at `offset` of rows of `stride`, times `factor`.
#[inline(always)]
fn load<T: Float>(to: &mut [T], from: &[T], stride: usize, offset: usize, size: Size, factor: T) {
    for (to, from) in to.chunks_exact_mut(size.wide).zip(from.chunks_exact(stride)) {
        let (to, from) = (&mut to[..size.head], &from[offset..offset + size.head]);
        // Whole vectors, of which the compiler knows the length.
        let ((to, to_rest), (from, from_rest)) = (to.as_chunks_mut::<LANES>(), from.as_chunks::<LANES>());
        for (to, &from) in to.iter_mut().zip(from) {
            let mut scaled = from;
            for scaled in &mut scaled {
                *scaled *= factor;
            }
            *to = scaled;
        }
        for (to, &from) in to_rest.iter_mut().zip(from_rest) {
            *to = from * factor;
        }
    }
}

#[inline(always)]
fn store<T: Float>(to: &mut [MaybeUninit<T>], from: &[T], stride: usize, offset: usize, size: Size) {
    for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(size.wide)) {
        let (to, from) = (&mut to[offset..offset + size.head], &from[..size.head]);
        let ((to, to_rest), (from, from_rest)) = (to.as_chunks_mut::<LANES>(), from.as_chunks::<LANES>());
        for (to, from) in to.iter_mut().zip(from) {
            to.write_copy_of_slice(from);
        }
        for (to, &from) in to_rest.iter_mut().zip(from_rest) {
            to.write(from);
        }
    }
}

/// `out = a·b` for `a` (keys, wide) and `b` (wide, queries): of each vector of queries, the keys up to its last.
#[inline(always)]
fn scores<T: Float, I: Isa>(out: &mut [T], a: &[T], b: &[T], size: Size) {
    for first in (0..size.t).step_by(LANES) {
        let (keys, strides) = (size.t.min(first + LANES), (size.long, size.long));
        product::<T, I>(&mut out[first..], Left(a, size.wide, 1), &b[first..], strides, keys, |_| Wanted {
            terms: 0..size.head,
            columns: LANES,
        });
    }
}

/// A vector of queries beside a key.
#[inline(always)]
fn at<T>(matrix: &[T], key: usize, first: usize, size: Size) -> &[T; LANES] {
    let from = key * size.long + first;
    matrix[from..].first_chunk().expect("rows are whole vectors")
}

#[inline(always)]
fn at_mut<T>(matrix: &mut [T], key: usize, first: usize, size: Size) -> &mut [T; LANES] {
    let from = key * size.long + first;
    matrix[from..].first_chunk_mut().expect("rows are whole vectors")
}

/// Does the query in a lane see a key? Compared in numbers as wide as f32.
#[inline(always)]
fn sees(first: usize, lane: usize, key: usize) -> bool {
    first as u32 + lane as u32 >= key as u32
}

/// Partial sums of the keys that are as many vectors apart, for a vector of queries.
type Partial<T> = [[T; LANES]; LANES];

/// A key's partial sum before anything is added to it. Nothing needs to have been written there before the first.
#[inline(always)]
fn before<T: Float>(sums: &Partial<T>, key: usize) -> [T; LANES] {
    if key < LANES { [T::zero(); LANES] } else { sums[key % LANES] }
}

/// Softmax over the keys that each query sees, zeros behind them up to the next whole vector of keys.
#[inline(always)]
fn causal_softmax<T: Float, I: Isa>(scores: &mut [T], sums: &mut Partial<T>, size: Size) {
    for first in (0..size.t).step_by(LANES) {
        let keys = first + LANES;
        let mut largest = *at(scores, 0, first, size);
        for key in 1..keys {
            let scores = at(scores, key, first, size);
            for lane in 0..LANES {
                let larger = sees(first, lane, key) & (scores[lane] > largest[lane]);
                largest[lane] = if larger { scores[lane] } else { largest[lane] };
            }
        }
        for key in 0..keys {
            let scores = at_mut(scores, key, first, size);
            for lane in 0..LANES {
                let e = (scores[lane] - largest[lane]).exponential::<I>();
                scores[lane] = if sees(first, lane, key) { e } else { T::zero() };
            }
        }
        for key in 0..keys {
            sums[key % LANES] = by_lane([&before(sums, key), at(scores, key, first, size)], |[sum, e]| sum + e);
        }
        let mut scale = tree_of_lanes(sums);
        for scale in &mut scale {
            *scale = T::one() / *scale;
        }
        for key in 0..keys {
            let scores = at_mut(scores, key, first, size);
            for lane in 0..LANES {
                scores[lane] *= scale[lane];
            }
        }
    }
}

impl<T: Float> Head<T> {
    /// Loads head `h` of one sequence and computes its probabilities. The queries are scaled by 1/√(d/heads).
    #[inline(always)]
    fn attend<I: Isa>(&mut self, qkv: &[T], h: usize, size: Size) {
        let scale = T::of(1.0 / (size.head as f64).sqrt());
        let (stride, offset) = (3 * size.d, h * size.head);
        load(&mut self.q, qkv, stride, offset, size, scale);
        load(&mut self.k, qkv, stride, size.d + offset, size, T::one());
        load(&mut self.v, qkv, stride, 2 * size.d + offset, size, T::one());
        transpose::<T, I>(&mut self.transposed, &self.q, (size.t, size.head), (size.wide, size.long));
        scores::<T, I>(&mut self.probabilities, &self.k, &self.transposed, size);
        causal_softmax::<T, I>(&mut self.probabilities, &mut self.sums, size);
    }

    /// `out = matrixᵀ·b` for a matrix (keys, queries) that is zero where a query does not see a key.
    #[inline(always)]
    fn by_query<I: Isa>(out: &mut [T], matrix: &[T], b: &[T], size: Size) {
        product::<T, I>(out, Left(matrix, 1, size.long), b, (size.wide, size.wide), size.t, |row| Wanted {
            terms: 0..size.t.min(size.keys_of(row)),
            columns: size.wide,
        });
    }

    /// `out = matrix·b` for such a matrix.
    #[inline(always)]
    fn by_key<I: Isa>(out: &mut [T], matrix: &[T], b: &[T], size: Size) {
        product::<T, I>(out, Left(matrix, size.long, 1), b, (size.wide, size.wide), size.t, |row| Wanted {
            terms: row..size.t,
            columns: size.wide,
        });
    }
}

dispatch! {
    pub(crate) fn forward<T: Float, I: Isa>(qkv: &[T], size: Size, out: &mut [MaybeUninit<T>]) {
        let mut head = Head::new(size);
        for (qkv, out) in qkv.chunks_exact(3 * size.t * size.d).zip(out.chunks_exact_mut(size.t * size.d)) {
            for h in 0..size.heads {
                head.attend::<I>(qkv, h, size);
                Head::by_query::<I>(&mut head.out, &head.probabilities, &head.v, size);
                store(out, &head.out, size.d, h * size.head, size);
            }
        }
    }
}

dispatch! {
    /// With P the probabilities and G the gradient: dV = Pᵀ·G, dP = G·Vᵀ, dS = P∘(dP − Σ P∘dP), dQ = dS·K, dK = dSᵀ·Q.
    pub(crate) fn backward<T: Float, I: Isa>(qkv: &[T], grad: &[T], size: Size, out: &mut [MaybeUninit<T>]) {
        let mut head = Head::new(size);
        let mut g = vec![T::zero(); size.long * size.wide];
        let mut slopes = vec![T::zero(); size.long * size.long];
        let scale = T::of(1.0 / (size.head as f64).sqrt());
        let (packed, d) = (3 * size.d, size.d);
        let sequences = qkv.chunks_exact(size.t * packed).zip(grad.chunks_exact(size.t * d));
        for ((qkv, grad), out) in sequences.zip(out.chunks_exact_mut(size.t * packed)) {
            for h in 0..size.heads {
                let offset = h * size.head;
                head.attend::<I>(qkv, h, size);
                load(&mut g, grad, d, offset, size, T::one());
                Head::by_key::<I>(&mut head.out, &head.probabilities, &g, size);
                store(out, &head.out, packed, 2 * d + offset, size);

                transpose::<T, I>(&mut head.transposed, &g, (size.t, size.head), (size.wide, size.long));
                scores::<T, I>(&mut slopes, &head.v, &head.transposed, size);
                softmax_slopes(&mut slopes, &head.probabilities, &mut head.sums, size);
                Head::by_key::<I>(&mut head.out, &slopes, &head.q, size);
                store(out, &head.out, packed, d + offset, size);
                for k in head.k.iter_mut() {
                    *k *= scale;
                }
                Head::by_query::<I>(&mut head.out, &slopes, &head.k, size);
                store(out, &head.out, packed, offset, size);
            }
        }
    }
}

/// Turns the gradient of probabilities into that of scores. Vectors are read whole before one is written: of single elements
/// the compiler would not see that none is another's.
#[inline(always)]
fn softmax_slopes<T: Float>(slopes: &mut [T], probabilities: &[T], sums: &mut Partial<T>, size: Size) {
    for first in (0..size.t).step_by(LANES) {
        let keys = first + LANES;
        for key in 0..keys {
            let (slopes, p) = (at(slopes, key, first, size), at(probabilities, key, first, size));
            sums[key % LANES] = by_lane([&before(sums, key), slopes, p], |[sum, slope, p]| sum + slope * p);
        }
        let mean = tree_of_lanes(sums);
        for key in 0..keys {
            let (slopes, p) = (at_mut(slopes, key, first, size), at(probabilities, key, first, size));
            *slopes = by_lane([slopes, p, &mean], |[slope, p, mean]| p * (slope - mean));
        }
    }
}
