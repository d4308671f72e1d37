//! Rotary positions. The backward is the rotation by the negative angle.

use crate::{
    Rotary,
    buffer::{Rows, by_dtype, element_type, filled, in_rows, read, read_rows, rows, stored},
    cuda,
    dispatch::dispatch,
    float::Float,
    par, reference,
};
#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// Tokens worked on at a time.
const TOKENS: usize = 16;

/// Rotary positions: `x` (N, H, D), angles as in [`Rotary`]; element i of a head turns with element i + R, for i below
/// R. What lies behind the first 2·R elements stays. Tokens of `x` may lie apart; the angles get no gradient.
///
/// # Errors
/// Shapes that do not fit; types other than f32 and f64, or unlike each other.
pub fn rotate(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (tokens, heads, dim) = x.dims3()?;
    let (cos, sin) = (&rotary.cos, &rotary.sin);
    let pairs = cos.dims().last().copied().unwrap_or(0);
    if heads * dim == 0 || cos.dims() != [tokens, pairs] || sin.dims() != cos.dims() || 2 * pairs > dim {
        candle_core::bail!(
            "rotate: x (N, H, D) and cosine and sine (N, R) with 2·R up to D do not fit: {:?}, {:?}, {:?}",
            x.dims(),
            cos.dims(),
            sin.dims()
        );
    }
    if cos.dtype() != x.dtype() || sin.dtype() != x.dtype() {
        let types = [x, cos, sin].map(Tensor::dtype);
        candle_core::bail!("rotate: x, cosine and sine must be of one type, not {types:?}");
    }
    if cuda::is_candles(x) {
        return reference::rotate(x, rotary);
    }
    let x = if x.device().is_cpu() { in_rows(x, 2)? } else { x.contiguous()? };
    x.apply_op1(Rotate { cos: cos.detach().contiguous()?, sin: sin.detach().contiguous()? })
}

struct Rotate {
    cos: Tensor,
    sin: Tensor,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(x), self.name(), T => {
            let out = self.turned(rows::<T>(x, layout, 2)?, layout.dims()[2], T::of(1.0))?;
            Ok((stored(out), layout.shape().clone()))
        })
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::tensors::rotate((x, layout), [&self.cos, &self.sin])
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "candle-cuda")]
        if x.device().is_cuda() {
            return cuda::tensors::rotate_back(&grad.contiguous()?, [&self.cos, &self.sin]).map(Some);
        }
        let (dim, shape, grad) = (x.dim(2)?, x.shape(), in_rows(grad, 2)?);
        by_dtype!(x.dtype(), self.name(), T => {
            read_rows!(grad: T, 2);
            Ok(Some(Tensor::from_vec(self.turned(grad, dim, T::of(-1.0))?, shape, x.device())?))
        })
    }
}

impl Rotate {
    /// All tokens, turned by the angle, or by its negative where `direction` is −1.
    fn turned<T: Float>(&self, x: Rows<'_, T>, dim: usize, direction: T) -> Result<Vec<T>> {
        let (cos, sin) = (&self.cos, &self.sin);
        let pairs = cos.dim(1)?;
        read!(cos, sin: T);
        let fill = |out: &mut [MaybeUninit<T>]| {
            let jobs = out.chunks_mut(TOKENS * x.width).enumerate();
            par::each(x.count * x.width / 4, jobs, |(i, out)| {
                let angles = [cos, sin].map(|a| Rows::dense(a, pairs));
                turn(x, angles, i * TOKENS, dim, direction, out);
            });
        };
        // SAFETY: `out` holds as many tokens as `x`, and `turn` writes every element of every head.
        Ok(unsafe { filled(x.count * x.width, fill).0 })
    }
}

dispatch! {
    /// The tokens from `start`, as many as `out` has.
    fn turn<T: Float, I: Isa>(
        x: Rows<'_, T>,
        angles: [Rows<'_, T>; 2],
        start: usize,
        dim: usize,
        direction: T,
        out: &mut [MaybeUninit<T>],
    ) {
        let pairs = angles[0].width;
        for (i, out) in out.chunks_exact_mut(x.width).enumerate() {
            let (cos, sin) = (angles[0].row(start + i), angles[1].row(start + i));
            for (x, out) in x.row(start + i).chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                let (a, rest) = x.split_at(pairs);
                let (b, rest) = rest.split_at(pairs);
                let (first, out) = out.split_at_mut(pairs);
                let (second, out) = out.split_at_mut(pairs);
                for (i, (first, second)) in first.iter_mut().zip(second).enumerate() {
                    let (cos, sin) = (cos[i], sin[i] * direction);
                    first.write(a[i] * cos - b[i] * sin);
                    second.write(b[i] * cos + a[i] * sin);
                }
                out.write_copy_of_slice(rest);
            }
        }
    }
}
