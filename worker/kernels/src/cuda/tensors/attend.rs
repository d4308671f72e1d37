//! Causal attention with grouped queries.

use super::{Given, Gpu, Made, held};
use crate::{
    Attend, Span,
    buffer::row_stride,
    cuda::attend::{Grouped, Plan},
    linear::Gradients,
};
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// How the work is spread, with its tables on the device.
pub(super) struct Spread {
    of: Grouped,
    spans: Vec<Span>,
    plan: Plan,
    blocks: Tensor,
    /// Pieces and entries, which only a backward wants.
    tables: OnceLock<[Tensor; 2]>,
}

/// The spreads that were used last: the blocks of a model want one or two of them, over and over.
#[derive(Default)]
pub(super) struct Spreads(Mutex<VecDeque<Arc<Spread>>>);

/// How many are kept.
const SPREADS: usize = 4;

impl Spreads {
    fn of(&self, gpu: &Gpu, layouts: [&Layout; 3], spans: &[Span], how: &Attend) -> Result<Arc<Spread>> {
        let of = grouped(gpu, layouts, how)?;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spread) = kept.iter().find(|spread| spread.of == of && spread.spans == spans) {
            return Ok(spread.clone());
        }
        let plan = Plan::new(of, spans)?;
        let blocks = gpu.upload(plan.blocks())?;
        let spread = Arc::new(Spread { of, spans: spans.to_vec(), plan, blocks, tables: OnceLock::new() });
        kept.truncate(SPREADS - 1);
        kept.push_front(spread.clone());
        Ok(spread)
    }
}

impl Spread {
    fn tables(&self, gpu: &Gpu) -> Result<&[Tensor; 2]> {
        if let Some(tables) = self.tables.get() {
            return Ok(tables);
        }
        let made = [gpu.upload(self.plan.pieces())?, gpu.upload(self.plan.entries())?];
        Ok(self.tables.get_or_init(|| made))
    }
}

fn grouped(gpu: &Gpu, [q, k, v]: [&Layout; 3], how: &Attend) -> Result<Grouped> {
    let (queries, heads, dim) = q.shape().dims3()?;
    let (keys, groups, _) = k.shape().dims3()?;
    let [Some(of_q), Some(of_k), Some(of_v)] = [q, k, v].map(|layout| row_stride(layout, 2)) else {
        candle_core::bail!("attend: {q:?}, {k:?} and {v:?} have no regular rows; make them contiguous first")
    };
    Ok(Grouped { queries, keys, heads, groups, dim, strides: [of_q, of_k, of_v], how: *how, shared: gpu.shared() })
}

/// The result, and where it is `kept` for a backward the largest score and 1 / the sum of exponentials of each query and head.
pub(crate) fn attend(
    [q, k, v]: [Given<'_>; 3],
    spans: &[Span],
    how: &Attend,
    kept: bool,
) -> Result<(CudaStorage, Shape, Option<Tensor>)> {
    let gpu = Gpu::of(&q.0.device)?;
    let (shape, (queries, heads, _)) = (q.1.shape(), q.1.shape().dims3()?);
    let spread = gpu.loaded.spreads.of(&gpu, [q.1, k.1, v.1], spans, how)?;
    let (plan, blocks) = (&spread.plan, &spread.blocks);
    let mut out = gpu.room::<f32>(shape.elem_count())?;
    let mut kept = kept.then(|| gpu.room::<f32>(2 * queries * heads)).transpose()?;
    {
        let inputs = [&gpu.from::<f32>(q)?, &gpu.from::<f32>(k)?, &gpu.from::<f32>(v)?];
        held!(gpu.from::<u32>; blocks);
        let kept = kept.as_mut().map(|kept| kept.held(&gpu));
        gpu.launch(&plan.forward(inputs, blocks, &out.held(&gpu), kept.as_ref()))?;
    }
    let kept = kept.map(|kept| kept.tensor(&gpu, (queries, heads, 2)));
    Ok((out.storage(&gpu), shape.clone(), kept))
}

/// Gradients of `q`, `k` and `v`, where wanted, from the result, what the forward kept, and the result's gradient.
pub(crate) fn attend_backward(
    [q, k, v]: [&Tensor; 3],
    [out, kept, grad]: [&Tensor; 3],
    spans: &[Span],
    how: &Attend,
) -> Result<Gradients> {
    let gpu = Gpu::of_tensor(q)?;
    let (of_queries, of_keys, wants) = (q.shape(), k.shape(), [q, k, v].map(Tensor::track_op));
    let spread = gpu.loaded.spreads.of(&gpu, [q.layout(), k.layout(), v.layout()], spans, how)?;
    let (plan, blocks, [pieces, entries]) = (&spread.plan, &spread.blocks, spread.tables(&gpu)?);
    let mut means = gpu.room::<f32>(q.dim(0)? * q.dim(1)?)?;
    let made = |i: usize, shape: &Shape| wants[i].then(|| gpu.room::<f32>(shape.elem_count())).transpose();
    let [mut dq, mut dk, mut dv] = [made(0, of_queries)?, made(1, of_keys)?, made(2, of_keys)?];
    {
        held!(gpu.from::<f32>; q, k, v);
        held!(gpu.dense::<f32>; out, kept, grad);
        held!(gpu.from::<u32>; blocks, pieces, entries);
        let means = &means.held(&gpu);
        gpu.launch(&plan.means([grad, out, means]))?;
        if let Some(dq) = &mut dq {
            gpu.launch(&plan.backward_queries([q, k, v], blocks, [grad, means, kept, &dq.held(&gpu)]))?;
        }
        if wants[1] || wants[2] {
            let [dk, dv] = [&mut dk, &mut dv].map(|d| d.as_mut().map(|d| d.held(&gpu)));
            let (tables, given) = ([blocks, pieces, entries], [grad, means, kept]);
            gpu.launch(&plan.backward_keys([q, k, v], tables, given, [dk.as_ref(), dv.as_ref()]))?;
        }
    }
    let tensor = |made: Option<Made<f32>>, shape| made.map(|made| made.tensor(&gpu, shape));
    Ok((tensor(dq, of_queries), tensor(dk, of_keys), tensor(dv, of_keys)))
}
