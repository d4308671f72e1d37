//! Mamba-2's mixer (Dao and Gu 2024): a short convolution and a selective state space, under a gate.
//!
//! What it computes is that of the authors' `mamba_ssm` and of transformers 5: the gate first, then a norm of each group of
//! heads by itself. (Transformers 4 normed over all of them, whatever the number of groups, except while it trained.) Time
//! steps are kept within their limits everywhere, also token by token, where the others forget it.

mod loops;
mod plain;
mod real;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use scan::Sizes;

use super::{
    batch::Rows,
    cache::Recurrent,
    config::Mamba2Config,
    linear::{Linear, Projection},
    norm::wide,
    pass::Pass,
};
use crate::hook::{BlockPoint, HookPoint};
use candle_core::{DType, Device, Result, Storage, Tensor};
use loops::{Columns, Convolution, GroupNorm};
use real::Real;
use scan::{Heads, Tokens};
use std::ops::Range;

/// Tokens that are worked on at a time: half of the work within a chunk is for nothing, and grows with its length.
const CHUNK: usize = 64;

impl Sizes {
    pub(crate) fn of(config: &Mamba2Config) -> Self {
        Self { heads: config.heads, head_dim: config.head, state: config.state, groups: config.groups }
    }
}

/// The parameters of a mixer but its projections, as checkpoints have them.
#[derive(Clone)]
pub(crate) struct Parameters {
    /// (C, 1, K) for the C channels of x, B and C.
    pub(crate) kernel: Tensor,
    /// (C).
    pub(crate) kernel_bias: Option<Tensor>,
    /// (H).
    pub(crate) step_bias: Tensor,
    /// ln(−a), (H).
    pub(crate) log_rate: Tensor,
    /// d, (H).
    pub(crate) skip: Tensor,
    /// (H·P).
    pub(crate) norm: Tensor,
    pub(crate) epsilon: f64,
}

#[derive(Clone)]
pub(crate) struct Mamba2 {
    /// To gate z, then x, B and C, then raw time steps.
    input: Linear,
    pub(crate) output: Linear,
    sizes: Sizes,
    limits: (f64, f64),
    /// (K, C).
    kernel: Tensor,
    kernel_bias: Option<Tensor>,
    step_bias: Tensor,
    /// a.
    rate: Tensor,
    skip: Tensor,
    norm: Tensor,
    epsilon: f64,
}

/// What a layer keeps of rows.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The last inputs of the convolution, oldest first: (rows, K − 1, C).
    inputs: Tensor,
    /// (rows, H, P, S).
    ssm: Tensor,
}

impl State {
    /// Of `rows` rows that have not begun.
    pub(crate) fn zeros(config: &Mamba2Config, rows: usize, dtype: DType, device: &Device) -> Result<Self> {
        Self::empty(Sizes::of(config), config.kernel, rows, dtype, device)
    }

    fn empty(sizes: Sizes, kernel: usize, rows: usize, dtype: DType, device: &Device) -> Result<Self> {
        let ssm = (rows, sizes.heads, sizes.head_dim, sizes.state);
        Ok(Self {
            inputs: Tensor::zeros((rows, kernel - 1, sizes.mixed()), dtype, device)?,
            ssm: Tensor::zeros(ssm, dtype, device)?,
        })
    }

    /// These of the rows, in this order.
    pub(crate) fn select(&self, rows: &[u32]) -> Result<Self> {
        let rows = Tensor::new(rows, self.ssm.device())?;
        Ok(Self { inputs: self.inputs.index_select(&rows, 0)?, ssm: self.ssm.index_select(&rows, 0)? })
    }
}

impl Mamba2 {
    /// `projections` are in and out.
    pub(crate) fn new(config: &Mamba2Config, projections: [Linear; 2], parameters: Parameters) -> Result<Self> {
        let [input, output] = projections;
        let wide = |t: &Tensor| t.to_dtype(wide(t.dtype()));
        Ok(Self {
            input,
            output,
            sizes: Sizes::of(config),
            limits: config.steps,
            kernel: wide(&parameters.kernel)?.squeeze(1)?.t()?.contiguous()?,
            kernel_bias: parameters.kernel_bias.as_ref().map(wide).transpose()?,
            step_bias: wide(&parameters.step_bias)?,
            rate: wide(&parameters.log_rate)?.exp()?.neg()?,
            skip: wide(&parameters.skip)?,
            norm: wide(&parameters.norm)?,
            epsilon: parameters.epsilon,
        })
    }

    pub(crate) fn device(&self) -> &Device {
        self.input.weight().device()
    }

    /// What `output` is given: (N, d) to (N, inner width). `cache` holds what came before the tokens of this pass, and gets what
    /// comes after.
    pub(crate) fn before_output(
        &self,
        x: &Tensor,
        block: usize,
        cache: Option<&mut Recurrent>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let dtype = wide(self.input.weight().dtype());
        let rows: Vec<Range<usize>> = pass.hook.rows().iter().map(|row| row.tokens.clone()).collect();
        let projected = self.input.forward(&x.to_dtype(dtype)?)?.to_dtype(wide(dtype))?.contiguous()?;
        let before = match &cache {
            Some(cache) => cache.state().clone(),
            None => State::empty(self.sizes, self.kernel.dim(0)?, rows.len(), wide(dtype), x.device())?,
        };
        let (y, mut after) = self.mix(&projected, &rows, &before)?;
        after.ssm = visited(after.ssm, block, pass)?;
        if let Some(cache) = cache {
            cache.advance(after);
        }
        y.to_dtype(dtype)
    }

    /// From what the first projection gives to what the second takes, (N, H·P).
    fn mix(&self, projected: &Tensor, rows: &[Range<usize>], before: &State) -> Result<(Tensor, State)> {
        let fixed = projected.device().is_cpu() && !projected.track_op() && !before.ssm.track_op();
        match projected.dtype() {
            DType::F32 if fixed => self.mix_by_loops::<f32>(projected, rows, before),
            DType::F64 if fixed => self.mix_by_loops::<f64>(projected, rows, before),
            _ => self.mix_plainly(projected, rows, before),
        }
    }

    fn mix_by_loops<T: Real>(
        &self,
        projected: &Tensor,
        rows: &[Range<usize>],
        before: &State,
    ) -> Result<(Tensor, State)> {
        let values = |t: &Tensor| t.flatten_all()?.to_vec1::<T>();
        let (mut inputs, mut ssm) = (values(&before.inputs)?, values(&before.ssm)?);
        let (kernel, kernel_bias) = (values(&self.kernel)?, self.kernel_bias.as_ref().map(values).transpose()?);
        let (step_bias, rate, skip, norm) =
            (values(&self.step_bias)?, values(&self.rate)?, values(&self.skip)?, values(&self.norm)?);
        let (tokens, width) = projected.dims2()?;
        let (storage, layout) = projected.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { candle_core::bail!("activations are not where they should be") };
        let data = &storage.as_slice::<T>()?[layout.start_offset()..][..tokens * width];
        let columns = |first, count| Columns { data, width, first, count };
        let (inner, mixed) = (self.sizes.inner(), self.sizes.mixed());

        let convolution = Convolution { weight: &kernel, bias: kernel_bias.as_deref() };
        let x = loops::convolve(rows, columns(inner, mixed), convolution, &mut inputs);
        let limits = (T::of(self.limits.0), T::of(self.limits.1));
        let step = loops::steps(columns(inner + mixed, self.sizes.heads), &step_bias, limits);
        let heads = Heads { rate: &rate, skip: &skip };
        let mut y = scan::scan(self.sizes, CHUNK, rows, Tokens { mixed: &x, step: &step }, heads, &mut ssm);
        let norm = GroupNorm { weight: &norm, groups: self.sizes.groups, eps: T::of(self.epsilon) };
        loops::gate(&mut y, columns(0, inner), norm);

        let device = projected.device();
        let inputs = Tensor::from_vec(inputs, before.inputs.shape(), device)?;
        let after = State { inputs, ssm: Tensor::from_vec(ssm, before.ssm.shape(), device)? };
        Ok((Tensor::from_vec(y, (tokens, inner), device)?, after))
    }

    fn mix_plainly(&self, projected: &Tensor, rows: &[Range<usize>], before: &State) -> Result<(Tensor, State)> {
        let (inner, mixed) = (self.sizes.inner(), self.sizes.mixed());
        let x = projected.narrow(1, inner, mixed)?;
        let (x, inputs) = plain::convolve(rows, &x, &self.kernel, self.kernel_bias.as_ref(), &before.inputs)?;
        let step = plain::steps(&projected.narrow(1, inner + mixed, self.sizes.heads)?, &self.step_bias, self.limits)?;
        let read = [&x, &step, &self.rate, &self.skip, &before.ssm];
        let (y, ssm) = plain::scan(self.sizes, CHUNK, rows, read)?;
        let y = plain::gate(&y, &projected.narrow(1, 0, inner)?, &self.norm, self.sizes.groups, self.epsilon)?;
        Ok((y, State { inputs, ssm }))
    }

    pub(crate) fn linear_mut(&mut self, projection: Projection) -> Option<&mut Linear> {
        match projection {
            Projection::MixerIn => Some(&mut self.input),
            Projection::MixerOut => Some(&mut self.output),
            _ => None,
        }
    }
}

/// Lets the hook see and replace the state of each row.
fn visited(states: Tensor, block: usize, pass: &mut Pass<'_>) -> Result<Tensor> {
    let point = HookPoint::Block(block, BlockPoint::State);
    if !pass.hook.wants(point) {
        return Ok(states);
    }
    let mut changed = Vec::new();
    for (i, row) in pass.hook.rows().iter().enumerate() {
        let state = states.get(i)?;
        changed.push(pass.hook.look(point, &state, &Rows::only(row))?.unwrap_or(state));
    }
    Tensor::stack(&changed, 0)
}
