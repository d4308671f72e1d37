//! Causal attention with grouped queries over spans of keys, block by block: no row's matrix of scores is ever whole in
//! memory.
//!
//! Some queries of a span and all heads of one group are a block's lanes; scores lie as (keys, lanes), so that softmax
//! runs along the lanes and keys are used as they lie in memory. The backward computes the probabilities again from
//! each lane's largest score and sum, which the forward keeps where gradients are wanted.

use crate::{
    Attend, Span, attend_backward,
    attend_block::{Inputs, Keys, Lanes, Scratch, blocks, vectors},
    buffer::{by_dtype, element_type, filled, in_rows, rows, stored},
    cuda,
    dispatch::{Isa, dispatch},
    float::{Float, LANES},
    linear::Gradients,
    par::{self, Shared},
    reference,
    tile::{Left, add_product},
};
#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use std::{mem::MaybeUninit, sync::OnceLock};

/// Causal attention with grouped queries: `q` (N, H, D), `k` and `v` (M, G, D) where G divides H and head h reads group
/// h·G/H; gives (N, H, D). Tokens of each may lie apart. Spans may share keys; gradients are then added span by span.
///
/// # Errors
/// Shapes or types that do not fit; spans that do not cover the queries in order, reach beyond the keys or have fewer
/// keys than queries; a window of no keys or a cap that is not positive.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Span], attend: &Attend) -> Result<Tensor> {
    check_shapes(q, k, v)?;
    check_spans(spans, q.dim(0)?, k.dim(0)?)?;
    check_how(attend)?;
    if cuda::is_candles(q) {
        return reference::attend(q, k, v, spans, attend);
    }
    let kept = if q.track_op() || k.track_op() || v.track_op() { Kept::Later(OnceLock::new()) } else { Kept::Nothing };
    in_rows(q, 2)?.apply_op3(&in_rows(k, 2)?, &in_rows(v, 2)?, Op { spans: spans.to_vec(), how: *attend, kept })
}

fn check_shapes(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
    let (_, heads, dim) = q.dims3()?;
    let (_, groups, key_dim) = k.dims3()?;
    if groups == 0 || heads == 0 || dim == 0 || heads % groups != 0 || key_dim != dim || v.dims() != k.dims() {
        candle_core::bail!(
            "attend: q (N, H, D), k and v (M, G, D), where G divides H, do not fit: {:?}, {:?}, {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    if k.dtype() != q.dtype() || v.dtype() != q.dtype() {
        let types = [q, k, v].map(Tensor::dtype);
        candle_core::bail!("attend: q, k and v must be of one type, not {types:?}");
    }
    Ok(())
}

pub(crate) fn check_how(attend: &Attend) -> Result<()> {
    if attend.window == Some(0) {
        candle_core::bail!("attend: a window of 0 keys; a query sees at least its own, so 1 is the least");
    }
    if attend.softcap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
        candle_core::bail!("attend: the scores' cap must be positive, not {:?}", attend.softcap);
    }
    Ok(())
}

pub(crate) fn check_spans(spans: &[Span], queries: usize, keys: usize) -> Result<()> {
    let mut next = 0;
    for (i, span) in spans.iter().enumerate() {
        if span.queries.start != next || span.queries.end < next || span.queries.end > queries {
            candle_core::bail!(
                "attend: span {i} has queries {:?}, where {next}.. of {queries} come next; spans cover them in order",
                span.queries
            );
        }
        if [&span.prefix, &span.keys].iter().any(|r| r.start > r.end || r.end > keys) {
            candle_core::bail!("attend: span {i} has keys {:?} and {:?}, of {keys}", span.prefix, span.keys);
        }
        if span.visible() < span.queries.len() {
            candle_core::bail!(
                "attend: span {i} has {} keys for {} queries; each query needs its own",
                span.visible(),
                span.queries.len()
            );
        }
        next = span.queries.end;
    }
    if next != queries {
        candle_core::bail!("attend: spans cover {next} of {queries} queries");
    }
    Ok(())
}

/// What the forward leaves for the backward: of each query and head the largest score and 1 / the sum of exponentials.
enum Kept {
    Nothing,
    /// Set by the forward.
    Later(OnceLock<Tensor>),
}

struct Op {
    spans: Vec<Span>,
    how: Attend,
    kept: Kept,
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(q), self.name(), T => {
            let inputs = Inputs {
                q: rows::<T>(q, q_layout, 2)?,
                k: rows(k, k_layout, 2)?,
                v: rows(v, v_layout, 2)?,
                dim: q_layout.dims()[2],
                how: &self.how,
            };
            let out = match &self.kept {
                Kept::Nothing => forward(inputs, &self.spans, None),
                Kept::Later(cell) => {
                    let (heads, len) = (inputs.heads(), 2 * inputs.q.count * inputs.heads());
                    let fill = |kept: &mut [MaybeUninit<T>]| {
                        forward(inputs, &self.spans, Some(Shared::new(kept.as_mut_ptr().cast())))
                    };
                    // SAFETY: the spans cover all queries, and `attend_all` leaves two numbers for each of their heads.
                    let (kept, out) = unsafe { filled(len, fill) };
                    let set = cell.set(Tensor::from_vec(kept, (inputs.q.count, heads, 2), &Device::Cpu)?);
                    debug_assert!(set.is_ok(), "an op is applied once");
                    out
                }
            };
            Ok((stored(out), q_layout.shape().clone()))
        })
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (inputs, later) = ([(q, q_layout), (k, k_layout), (v, v_layout)], matches!(self.kept, Kept::Later(_)));
        let (out, shape, kept) = cuda::tensors::attend(inputs, &self.spans, &self.how, later)?;
        if let (Kept::Later(cell), Some(kept)) = (&self.kept, kept) {
            let set = cell.set(kept);
            debug_assert!(set.is_ok(), "an op is applied once");
        }
        Ok((out, shape))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let Kept::Later(kept) = &self.kept else { return Ok((None, None, None)) };
        let Some(kept) = kept.get() else { candle_core::bail!("attend: backward without a forward") };
        let grad = &grad.contiguous()?;
        #[cfg(feature = "candle-cuda")]
        if q.device().is_cuda() {
            return cuda::tensors::attend_backward([q, k, v], [out, kept, grad], &self.spans, &self.how);
        }
        by_dtype!(q.dtype(), self.name(), T => {
            attend_backward::gradients::<T>([q, k, v], [out, kept, grad], &self.spans, &self.how)
        })
    }
}

/// All queries; leaves largest scores and sums in `kept`.
fn forward<T: Float>(inputs: Inputs<'_, T>, spans: &[Span], kept: Option<Shared<T>>) -> Vec<T> {
    let blocks: Vec<Lanes<'_>> = spans.iter().flat_map(|span| blocks(span, inputs.heads(), inputs.groups())).collect();
    let scores = blocks.iter().map(|block| block.padded() * block.wanted(inputs.how.window).len()).sum();
    // Each piece of work has a scratch memory; no result depends on how many share one.
    let at_a_time = blocks.len().div_ceil(8 * rayon::current_num_threads()).max(1);
    let fill = |out: &mut [MaybeUninit<T>]| {
        let out = Shared::new(out.as_mut_ptr().cast());
        par::each(scores, blocks.chunks(at_a_time), |blocks| attend_all(inputs, blocks, out, kept));
    };
    // SAFETY: the spans cover all queries, and `attend_all` writes all heads of each.
    unsafe { filled(inputs.q.count * inputs.q.width, fill).0 }
}

dispatch! {
    fn attend_all<T: Float, I: Isa>(
        inputs: Inputs<'_, T>,
        blocks: &[Lanes<'_>],
        out: Shared<T>,
        kept: Option<Shared<T>>,
    ) {
        let mut scratch = Scratch::new(blocks, inputs.dim);
        for block in blocks {
            attend_block::<T, I>(&mut scratch, inputs, *block);
            store(&scratch, inputs, *block, out, kept);
        }
    }
}

/// Largest scores, sums of exponentials and weighted sums of values of one block's lanes.
#[inline(always)]
fn attend_block<T: Float, I: Isa>(scratch: &mut Scratch<T>, inputs: Inputs<'_, T>, block: Lanes<'_>) {
    let (lanes, wide) = (block.padded(), scratch.wide);
    scratch.begin::<I>(inputs, block);
    scratch.largest.fill([T::of(LOW); LANES]);
    scratch.sums.fill([T::zero(); LANES]);
    scratch.out[..lanes * wide].fill(T::zero());
    for keys in block.keys(inputs.how.window) {
        scratch.load_keys(inputs, block, &keys);
        scratch.scores::<I>(inputs.how, block, &keys);
        soften::<T, I>(scratch, lanes, &keys);
        for (row, &factor) in scratch.out.chunks_exact_mut(wide).zip(scratch.factors.as_flattened()).take(block.count())
        {
            if factor != T::of(1.0) {
                for x in row {
                    *x *= factor;
                }
            }
        }
        let probabilities = Left(&scratch.scores, 1, lanes);
        let shape = (keys.count, wide);
        add_product::<T, I>(&mut scratch.out, probabilities, &scratch.v, (wide, wide), block.count(), shape);
    }
}

/// Below every score.
const LOW: f64 = -1e30;

/// Turns scores into exponentials relative to the largest score so far, zero where a lane does not see the key; adds
/// them to the sums, and leaves in `factors` by how much what was computed before shrinks.
#[inline(always)]
fn soften<T: Float, I: Isa>(scratch: &mut Scratch<T>, lanes: usize, keys: &Keys<'_>) {
    for v in 0..lanes / LANES {
        let (seen, mut largest, mut sums) = (scratch.seen[v], scratch.largest[v], scratch.sums[v]);
        for (key, scores) in keys.positions().zip(vectors(&mut scratch.scores, v, lanes)) {
            for lane in 0..LANES {
                let score = if seen.by(lane, key) { scores[lane] } else { T::of(LOW) };
                largest[lane] = if score > largest[lane] { score } else { largest[lane] };
            }
        }
        let mut factors = scratch.largest[v];
        for lane in 0..LANES {
            factors[lane] = (factors[lane] - largest[lane]).exponential::<I>();
            sums[lane] *= factors[lane];
        }
        for (key, scores) in keys.positions().zip(vectors(&mut scratch.scores, v, lanes)) {
            for lane in 0..LANES {
                let e = (scores[lane] - largest[lane]).exponential::<I>();
                scores[lane] = if seen.by(lane, key) { e } else { T::zero() };
                sums[lane] += scores[lane];
            }
        }
        (scratch.largest[v], scratch.sums[v], scratch.factors[v]) = (largest, sums, factors);
    }
}

#[inline(always)]
fn store<T: Float>(
    scratch: &Scratch<T>,
    inputs: Inputs<'_, T>,
    block: Lanes<'_>,
    out: Shared<T>,
    kept: Option<Shared<T>>,
) {
    for lane in 0..block.count() {
        let (query, head) = block.at(lane);
        let share = T::of(1.0) / scratch.sums.as_flattened()[lane];
        // SAFETY: no other block has this query and head.
        let out = unsafe { out.part(query * inputs.q.width + head * inputs.dim, inputs.dim) };
        for (out, &sum) in out.iter_mut().zip(&scratch.out[lane * scratch.wide..]) {
            *out = sum * share;
        }
        if let Some(kept) = kept {
            // SAFETY: as above; there are two numbers for each query and head.
            let kept = unsafe { kept.part((query * inputs.heads() + head) * 2, 2) };
            kept.copy_from_slice(&[scratch.largest.as_flattened()[lane], share]);
        }
    }
}
