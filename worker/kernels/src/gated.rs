//! `activation(gate)·up` for gated feed-forward layers. The backward computes the activation again.

use crate::{
    Activation,
    buffer::{Rows, by_dtype, element_type, elements, filled, in_rows, read, read_rows, rows, stored, stored_brains},
    cuda,
    dispatch::{Isa, dispatch},
    float::{Float, LANES},
    linear_gelu::gelu,
    par::{self, Shared},
    reference,
    rounded::without_gradient,
    weight::Brain,
};
#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// Elements whose activations are held at a time in the backward.
const PIECE: usize = 16 * LANES;

/// `activation(gate)·up`, element by element. Rows (the last dimension) of both may lie apart, so that they may be the
/// halves of one matrix.
///
/// # Errors
/// Shapes or types that are unlike each other; types other than f32 and f64.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() || gate.dtype() != up.dtype() || gate.rank() == 0 {
        candle_core::bail!(
            "gated: gate and up must be alike, with at least one dimension: {:?} {:?} and {:?} {:?}",
            gate.dims(),
            gate.dtype(),
            up.dims(),
            up.dtype()
        );
    }
    if cuda::is_candles(gate) {
        return reference::gated(gate, up, activation);
    }
    in_rows(gate, 1)?.apply_op2(&in_rows(up, 1)?, Gated { activation })
}

/// The same, rounded to bf16: of f32 only, without a gradient.
pub(crate) fn gated_rounded(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    without_gradient("gated", &[gate, up])?;
    gate.apply_op2_no_bwd(up, &GatedRounded(activation))
}

struct GatedRounded(Activation);

impl CustomOp2 for GatedRounded {
    fn name(&self) -> &'static str {
        "gated_rounded"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (elements::<f32>(gate, gl)?, elements::<f32>(up, ul)?);
        assert_eq!(gate.len(), up.len());
        let fill = |out: &mut [MaybeUninit<Brain>]| {
            let out = Shared::new(out.as_mut_ptr().cast());
            let jobs = gate.chunks(PIECE).zip(up.chunks(PIECE)).enumerate();
            par::each(gate.len(), jobs, |(i, (gate, up))| {
                // SAFETY: chunks of as many elements, each of one job.
                let out = unsafe { out.part(i * PIECE, gate.len()) };
                Brain::join(self.0, gate, up, out);
            });
        };
        // SAFETY: the chunks are all elements; each is written.
        let (out, ()) = unsafe { filled(gate.len(), fill) };
        Ok((stored_brains(out), gl.shape().clone()))
    }
}

struct Gated {
    activation: Activation,
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(gate), self.name(), T => {
            let (gate, up) = (rows::<T>(gate, gate_layout, 1)?, rows::<T>(up, up_layout, 1)?);
            let at_a_time = rows_at_a_time(gate.width);
            let fill = |out: &mut [MaybeUninit<T>]| {
                let jobs = out.chunks_mut(at_a_time * gate.width.max(1)).enumerate();
                par::each(gate.count * gate.width, jobs, |(i, out)| match self.activation {
                    Activation::Silu => silu_times(gate, up, i * at_a_time, out),
                    Activation::GeluTanh => gelu_times(gate, up, i * at_a_time, out),
                });
            };
            // SAFETY: `gate` and `up` have the rows of `out`; each is written.
            let (out, ()) = unsafe { filled(gate.count * gate.width, fill) };
            Ok((stored(out), gate_layout.shape().clone()))
        })
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, gate: &CudaStorage, gl: &Layout, up: &CudaStorage, ul: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::tensors::gated(self.activation, (gate, gl), (up, ul))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = &grad.contiguous()?;
        #[cfg(feature = "candle-cuda")]
        if gate.device().is_cuda() {
            return cuda::tensors::gated_backward(self.activation, [gate, up, grad]);
        }
        by_dtype!(gate.dtype(), self.name(), T => backward::<T>(gate, up, grad, self.activation))
    }
}

/// About 2¹⁴ elements.
fn rows_at_a_time(width: usize) -> usize {
    ((1 << 14) / width.max(1)).max(1)
}

fn backward<T: Float>(
    gate: &Tensor,
    up: &Tensor,
    grad: &Tensor,
    activation: Activation,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (shape, device) = (gate.shape(), gate.device());
    let wants = [gate.track_op(), up.track_op()];
    read_rows!(gate, up: T, 1);
    read!(grad: T);
    let len = rows_at_a_time(gate.width) * gate.width.max(1);
    let elements = wants.map(|wanted| if wanted { grad.len() } else { 0 });
    let fill = |dgate: &mut [MaybeUninit<T>], dup: &mut [MaybeUninit<T>]| {
        let (mut dgate, mut dup) = (dgate.chunks_mut(len), dup.chunks_mut(len));
        let jobs = grad.chunks(len).enumerate().map(|(i, grad)| (i, grad, [dgate.next(), dup.next()]));
        par::each(grad.len(), jobs, |(i, grad, slopes)| {
            let start = i * rows_at_a_time(gate.width);
            match activation {
                Activation::Silu => silu_slopes(gate, up, start, grad, slopes),
                Activation::GeluTanh => gelu_slopes(gate, up, start, grad, slopes),
            }
        });
    };
    // SAFETY: each is empty or has the rows of `grad`, `gate` and `up`; each row is written.
    let (dgate, (dup, ())) = unsafe { filled(elements[0], |dgate| filled(elements[1], |dup| fill(dgate, dup))) };
    let tensor = |wanted: bool, data| wanted.then(|| Tensor::from_vec(data, shape, device)).transpose();
    Ok((tensor(wants[0], dgate)?, tensor(wants[1], dup)?))
}

/// x·σ(x) and its derivative σ·(1 + x·(1 − σ)).
///
/// Beyond ±87 σ is 1 or below 10⁻³⁷: clamping there keeps every intermediate finite and normal.
#[inline(always)]
fn silu<T: Float, I: Isa>(x: T) -> (T, T) {
    let c = x.clamped(T::of(-87.0), T::of(87.0));
    let e = (T::zero() - c).exponential::<I>();
    let sigma = T::one() / (T::one() + e);
    // 1 − σ = e·σ without cancellation.
    (x * sigma, sigma * I::mul_add(c, e * sigma, T::one()))
}

/// The rows from `start`, as many as `out` has.
#[inline(always)]
fn times<T: Float>(
    gate: Rows<'_, T>,
    up: Rows<'_, T>,
    start: usize,
    out: &mut [MaybeUninit<T>],
    activation: impl Fn(T) -> (T, T),
) {
    for (i, out) in out.chunks_exact_mut(gate.width).enumerate() {
        for ((out, &gate), &up) in out.iter_mut().zip(gate.row(start + i)).zip(up.row(start + i)) {
            out.write(activation(gate).0 * up);
        }
    }
}

/// The gradients of gate and up, where wanted, for the rows from `start`.
#[inline(always)]
fn slopes<T: Float>(
    gate: Rows<'_, T>,
    up: Rows<'_, T>,
    start: usize,
    grad: &[T],
    [mut dgate, mut dup]: [Option<&mut [MaybeUninit<T>]>; 2],
    activation: impl Fn(T) -> (T, T),
) {
    let mut held = [[T::zero(); PIECE]; 2];
    let width = gate.width;
    for (i, grad) in grad.chunks_exact(width).enumerate() {
        let (gate, up) = (gate.row(start + i), up.row(start + i));
        for at in (0..width).step_by(PIECE) {
            let piece = at..width.min(at + PIECE);
            let (grad, up) = (&grad[piece.clone()], &up[piece.clone()]);
            let [active, slope] = &mut held;
            for ((active, slope), &gate) in active.iter_mut().zip(slope.iter_mut()).zip(&gate[piece.clone()]) {
                (*active, *slope) = activation(gate);
            }
            let piece = i * width + piece.start..i * width + piece.end;
            if let Some(dgate) = &mut dgate {
                for (((d, &g), &up), &slope) in dgate[piece.clone()].iter_mut().zip(grad).zip(up).zip(slope.iter()) {
                    d.write(g * up * slope);
                }
            }
            if let Some(dup) = &mut dup {
                for ((d, &g), &active) in dup[piece].iter_mut().zip(grad).zip(active.iter()) {
                    d.write(g * active);
                }
            }
        }
    }
}

dispatch! {
    fn silu_times<T: Float, I: Isa>(gate: Rows<'_, T>, up: Rows<'_, T>, start: usize, out: &mut [MaybeUninit<T>]) {
        times(gate, up, start, out, silu::<T, I>);
    }
}

dispatch! {
    fn gelu_times<T: Float, I: Isa>(gate: Rows<'_, T>, up: Rows<'_, T>, start: usize, out: &mut [MaybeUninit<T>]) {
        times(gate, up, start, out, gelu::<T, I>);
    }
}

/// What products are joined to: numbers of f32, or these rounded to bf16.
pub(crate) trait Joined: Copy + Send + Sync {
    const NONE: Self;

    /// `activation(gate)·up`, by element, as many as `out` has.
    fn join(activation: Activation, gate: &[f32], up: &[f32], out: &mut [Self]);
}

macro_rules! joined {
    ($type:ty, $none:expr, $of:expr, $silu:ident, $gelu:ident) => {
        joined!($silu, silu, $type, $of);
        joined!($gelu, gelu, $type, $of);

        impl Joined for $type {
            const NONE: Self = $none;

            fn join(activation: Activation, gate: &[f32], up: &[f32], out: &mut [Self]) {
                match activation {
                    Activation::Silu => $silu::<f32>(gate, up, out),
                    Activation::GeluTanh => $gelu::<f32>(gate, up, out),
                }
            }
        }
    };
    ($name:ident, $activation:ident, $type:ty, $of:expr) => {
        dispatch! {
            #[allow(clippy::extra_unused_type_parameters, reason = "dispatched functions have one")]
            fn $name<T: Float, I: Isa>(gate: &[f32], up: &[f32], out: &mut [$type]) {
                for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                    *out = $of($activation::<f32, I>(gate).0 * up);
                }
            }
        }
    };
}
joined!(f32, 0.0, std::convert::identity, silu_joins, gelu_joins);
joined!(Brain, Brain(0), Brain::nearest, silu_rounds, gelu_rounds);

dispatch! {
    fn silu_slopes<T: Float, I: Isa>(
        gate: Rows<'_, T>,
        up: Rows<'_, T>,
        start: usize,
        grad: &[T],
        out: [Option<&mut [MaybeUninit<T>]>; 2],
    ) {
        slopes(gate, up, start, grad, out, silu::<T, I>);
    }
}

dispatch! {
    fn gelu_slopes<T: Float, I: Isa>(
        gate: Rows<'_, T>,
        up: Rows<'_, T>,
        start: usize,
        grad: &[T],
        out: [Option<&mut [MaybeUninit<T>]>; 2],
    ) {
        slopes(gate, up, start, grad, out, gelu::<T, I>);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Plain;

    fn exact(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    #[test]
    fn silu_and_its_slope_are_within_float_accuracy_everywhere() {
        for i in -12_000..12_000 {
            let x = i as f32 / 100.0;
            let want = exact(x.into());
            let (got, slope) = silu::<f32, Plain>(x);
            assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs() + 1e-35, "silu({x}) = {got}, not {want}");
            let x = f64::from(x);
            let numeric = (exact(x + 1e-5) - exact(x - 1e-5)) / 2e-5;
            assert!((silu::<f64, Plain>(x).1 - numeric).abs() < 1e-9, "slope at {x}");
            assert!((f64::from(slope) - numeric).abs() < 2e-6, "slope at {x}");
        }
    }

    #[test]
    fn extremes_saturate_and_nan_stays() {
        for big in [200.0, 1e4, 1e30, f32::MAX] {
            assert_eq!(silu::<f32, Plain>(big), (big, 1.0));
            let (y, slope) = silu::<f32, Plain>(-big);
            assert!(y <= 0.0 && y.abs() <= 2e-38 * big && slope.abs() < 1e-35, "{y} {slope} at {}", -big);
        }
        let (y, slope) = silu::<f32, Plain>(f32::NAN);
        assert!(y.is_nan() && slope.is_nan());
    }
}
