//! Cross-entropy of logits against the index of the right class.
//!
//! The forward keeps each row's logarithm of the sum of exponentials, so that nothing as large as the logits arises but
//! their gradient.

use crate::{
    buffer::{by_dtype, element_type, filled, in_rows, read, read_rows, rows, stored},
    cuda,
    dispatch::dispatch,
    float::{Float, lane_max},
    par, reference,
};
#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, WithDType};
use std::{mem::MaybeUninit, sync::OnceLock};

/// Exponentials added in one type before the sum goes on in f64.
const PIECE: usize = 1024;

/// Mean over the rows of `−log softmax(logits)` at each row's target: `logits` (N, V), one target below V for each; a
/// scalar. Rows may lie apart.
///
/// # Errors
/// No rows, a number of targets that is not N, a target beyond V; types other than f32 and f64.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if n == 0 || targets.len() != n {
        candle_core::bail!(
            "cross_entropy: {} targets for logits {:?}; one a row, of at least one",
            targets.len(),
            logits.dims()
        );
    }
    if let Some((row, target)) = targets.iter().enumerate().find(|(_, target)| **target as usize >= classes) {
        candle_core::bail!("cross_entropy: target {target} of row {row} is not below the {classes} classes");
    }
    if cuda::is_candles(logits) {
        return reference::cross_entropy(logits, targets);
    }
    let norms = OnceLock::new();
    let logits = if logits.device().is_cpu() { in_rows(logits, 1)? } else { logits.contiguous()? };
    logits.apply_op1(CrossEntropy { targets: targets.to_vec(), norms })
}

struct CrossEntropy {
    targets: Vec<u32>,
    /// Of each row the largest logit and the sum of exponentials relative to it, set by the forward.
    norms: OnceLock<Tensor>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(logits), self.name(), T => {
            let logits = rows::<T>(logits, layout, 1)?;
            let mut norms = vec![(0.0, 0.0); logits.count];
            let jobs = norms.iter_mut().enumerate();
            par::each(logits.count * logits.width / 2, jobs, |(i, norm)| *norm = sum(logits.row(i)));
            let losses = norms.iter().zip(&self.targets).enumerate().map(|(i, ((largest, sum), target))| {
                sum.ln() + (largest - logits.row(i)[*target as usize].to_f64())
            });
            let loss = losses.sum::<f64>() / logits.count as f64;
            let norms = norms.into_iter().flat_map(|(largest, sum)| [largest, sum]).collect();
            let kept = self.norms.set(Tensor::from_vec(norms, (logits.count, 2), &Device::Cpu)?);
            debug_assert!(kept.is_ok(), "an op is applied once");
            Ok((stored(vec![T::of(loss)]), ().into()))
        })
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (loss, shape, norms) = cuda::tensors::cross_entropy((logits, layout), &self.targets)?;
        let kept = self.norms.set(norms);
        debug_assert!(kept.is_ok(), "an op is applied once");
        Ok((loss, shape))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(norms) = self.norms.get() else { candle_core::bail!("cross_entropy: backward without a forward") };
        #[cfg(feature = "candle-cuda")]
        if logits.device().is_cuda() {
            return cuda::tensors::cross_entropy_backward([logits, grad, norms], &self.targets).map(Some);
        }
        let (shape, device, type_) = (logits.shape(), logits.device(), logits.dtype());
        read!(norms: f64);
        by_dtype!(type_, self.name(), T => {
            read_rows!(logits: T, 1);
            read!(grad: T);
            let factor = grad[0].to_f64() / logits.count as f64;
            let fill = |out: &mut [MaybeUninit<T>]| {
                let jobs = out.chunks_mut(logits.width).zip(norms.chunks_exact(2)).zip(&self.targets).enumerate();
                par::each(logits.count * logits.width / 2, jobs, |(i, ((out, norm), target))| {
                    slopes(logits.row(i), (norm[0], norm[1]), *target as usize, factor, out);
                });
            };
            // SAFETY: `out` has the rows of `logits`; each is written.
            let (out, ()) = unsafe { filled(logits.count * logits.width, fill) };
            Ok(Some(Tensor::from_vec(out, shape, device)?))
        })
    }
}

dispatch! {
    /// The largest of some logits and the sum of exponentials relative to it.
    fn sum<T: Float, I: Isa>(row: &[T]) -> (f64, f64) {
        let largest = lane_max(row);
        let mut sum = 0.0;
        for piece in row.chunks(PIECE) {
            sum += I::sum([piece], |[x]| (x - largest).exponential::<I>()).to_f64();
        }
        (largest.to_f64(), sum)
    }
}

dispatch! {
    /// `(softmax − [the target])·factor`.
    fn slopes<T: Float, I: Isa>(
        row: &[T],
        norm: (f64, f64),
        target: usize,
        factor: f64,
        out: &mut [MaybeUninit<T>],
    ) {
        let (largest, share) = (T::of(norm.0), T::of(factor / norm.1));
        for (out, &x) in out.iter_mut().zip(row) {
            out.write((x - largest).exponential::<I>() * share);
        }
        let probability = (row[target] - largest).exponential::<I>().to_f64() / norm.1;
        out[target].write(T::of((probability - 1.0) * factor));
    }
}
