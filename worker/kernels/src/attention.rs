//! Causal multi-head self-attention, fused per sequence and head: scores, softmax and products stay in the first-level
//! cache. The forward keeps nothing; the backward computes the probabilities again, which is cheap where T is short.

use crate::{
    buffer::{by_dtype, element_type, elements, filled, read, stored},
    dispatch::{Isa, dispatch},
    float::{Float, LANES, lane_sum},
    par,
    tile::{Left, Wanted, product},
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

/// One head's matrices: (long, wide), (wide, long) where transposed, (long, long) for the probabilities.
struct Head<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    transposed: Vec<T>,
    probabilities: Vec<T>,
    out: Vec<T>,
}

impl<T: Float> Head<T> {
    fn new(size: Size) -> Self {
        let matrix = || vec![T::zero(); size.long * size.wide];
        let probabilities = vec![T::zero(); size.long * size.long];
        Self { q: matrix(), k: matrix(), v: matrix(), transposed: matrix(), probabilities, out: matrix() }
    }
}

/// Copies a head's columns, which begin at `offset` of rows of `stride`, times `factor`.
#[inline(always)]
fn load<T: Float>(to: &mut [T], from: &[T], stride: usize, offset: usize, size: Size, factor: T) {
    for (to, from) in to.chunks_exact_mut(size.wide).zip(from.chunks_exact(stride)) {
        for (to, &from) in to.iter_mut().zip(&from[offset..offset + size.head]) {
            *to = from * factor;
        }
    }
}

/// Transposes (long, wide) to (wide, long).
#[inline(always)]
fn transpose<T: Float>(to: &mut [T], from: &[T], size: Size) {
    for (column, to) in to.chunks_exact_mut(size.long).enumerate().take(size.head) {
        for (to, from) in to.iter_mut().zip(from.chunks_exact(size.wide)).take(size.t) {
            *to = from[column];
        }
    }
}

#[inline(always)]
fn store<T: Float>(to: &mut [MaybeUninit<T>], from: &[T], stride: usize, offset: usize, size: Size) {
    for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(size.wide)) {
        to[offset..offset + size.head].write_copy_of_slice(&from[..size.head]);
    }
}

/// Softmax of the first `row + 1` elements of each row, zeros behind them up to the next whole vector.
#[inline(always)]
fn causal_softmax<T: Float, I: Isa>(scores: &mut [T], size: Size) {
    for (row, scores) in scores.chunks_exact_mut(size.long).enumerate().take(size.t) {
        let visible = row + 1;
        let scores = &mut scores[..visible.next_multiple_of(LANES)];
        let mut max = scores[0];
        for &score in &scores[..visible] {
            max = if score > max { score } else { max };
        }
        for (column, score) in scores.iter_mut().enumerate() {
            let e = (*score - max).exponential::<I>();
            *score = if column < visible { e } else { T::zero() };
        }
        let total = lane_sum([&*scores], |[p]| p);
        let scale = T::one() / total;
        for score in scores.iter_mut() {
            *score *= scale;
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
        transpose(&mut self.transposed, &self.k, size);
        let q = Left(&self.q, size.wide, 1);
        product::<T, I>(&mut self.probabilities, q, &self.transposed, (size.long, size.long), size.t, |row| Wanted {
            terms: 0..size.head,
            columns: size.keys_of(row),
        });
        causal_softmax::<T, I>(&mut self.probabilities, size);
    }

    /// `out = matrix·b` for a (T, T) matrix that is zero above its diagonal.
    #[inline(always)]
    fn lower<I: Isa>(out: &mut [T], matrix: &[T], b: &[T], size: Size) {
        product::<T, I>(out, Left(matrix, size.long, 1), b, (size.wide, size.wide), size.t, |row| Wanted {
            terms: 0..size.t.min(size.keys_of(row)),
            columns: size.wide,
        });
    }

    /// `out = matrixᵀ·b` for a (T, T) matrix that is zero above its diagonal.
    #[inline(always)]
    fn lower_transposed<I: Isa>(out: &mut [T], matrix: &[T], b: &[T], size: Size) {
        product::<T, I>(out, Left(matrix, 1, size.long), b, (size.wide, size.wide), size.t, |row| Wanted {
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
                Head::lower::<I>(&mut head.out, &head.probabilities, &head.v, size);
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
                Head::lower_transposed::<I>(&mut head.out, &head.probabilities, &g, size);
                store(out, &head.out, packed, 2 * d + offset, size);

                transpose(&mut head.transposed, &head.v, size);
                product::<T, I>(&mut slopes, Left(&g, size.wide, 1), &head.transposed, (size.long, size.long), size.t, |row| {
                    Wanted { terms: 0..size.head, columns: size.keys_of(row) }
                });
                softmax_slopes(&mut slopes, &head.probabilities, size);
                Head::lower_transposed::<I>(&mut head.out, &slopes, &head.q, size);
                store(out, &head.out, packed, d + offset, size);
                for k in head.k.iter_mut() {
                    *k *= scale;
                }
                Head::lower::<I>(&mut head.out, &slopes, &head.k, size);
                store(out, &head.out, packed, offset, size);
            }
        }
    }
}

/// Turns the gradient of probabilities into that of scores.
#[inline(always)]
fn softmax_slopes<T: Float>(slopes: &mut [T], probabilities: &[T], size: Size) {
    let rows = slopes.chunks_exact_mut(size.long).zip(probabilities.chunks_exact(size.long));
    for (row, (slopes, p)) in rows.enumerate().take(size.t) {
        let visible = (row + 1).next_multiple_of(LANES);
        let (slopes, p) = (&mut slopes[..visible], &p[..visible]);
        let mean = lane_sum([&*slopes, p], |[s, p]| s * p);
        for (slope, &p) in slopes.iter_mut().zip(p) {
            *slope = p * (*slope - mean);
        }
    }
}
