//! Cross-entropy.

use super::{Given, Gpu, held};
use crate::cuda::language::{NORM, Targets};
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor, backend::BackendStorage};

/// Each row's place among the rows, and its target, on the device.
fn tables(gpu: &Gpu, targets: &[u32]) -> Result<[Tensor; 2]> {
    let rows: Vec<u32> = (0..targets.len() as u32).collect();
    Ok([gpu.upload(&rows)?, gpu.upload(targets)?])
}

/// The mean over the rows of dense `logits` (N, V), and what the backward needs of each.
pub(crate) fn cross_entropy(logits: Given<'_>, targets: &[u32]) -> Result<(CudaStorage, Shape, Tensor)> {
    let gpu = Gpu::of(&logits.0.device)?;
    let (rows, classes) = logits.1.shape().dims2()?;
    let of = Targets { rows, classes, targets: rows };
    let [positions, targets] = tables(&gpu, targets)?;
    let (mut losses, mut mean, mut norms) = (gpu.room::<f64>(rows)?, gpu.room::<f64>(1)?, gpu.room::<u8>(rows * NORM)?);
    {
        let logits = gpu.dense::<f32>(logits)?;
        held!(gpu.from::<u32>; positions, targets);
        let (losses, mean, norms) = (&losses.held(&gpu), &mean.held(&gpu), &norms.held(&gpu));
        gpu.launch(&of.forward([&logits, positions, targets], [losses, norms]))?;
        gpu.launch(&of.mean(1, [losses, mean]))?;
    }
    let norms = norms.tensor(&gpu, rows * NORM);
    let mean = mean.storage(&gpu).to_dtype(&Layout::contiguous(()), DType::F32)?;
    Ok((mean, ().into(), norms))
}

/// The gradient of `logits`, given that of the mean.
pub(crate) fn cross_entropy_backward([logits, grad, norms]: [&Tensor; 3], targets: &[u32]) -> Result<Tensor> {
    let gpu = Gpu::of_tensor(logits)?;
    let (rows, classes) = logits.dims2()?;
    let of = Targets { rows, classes, targets: rows };
    let factor = f64::from(grad.to_scalar::<f32>()?) / rows as f64;
    let [positions, targets] = tables(&gpu, targets)?;
    let mut slopes = gpu.room::<f32>(rows * classes)?;
    {
        held!(gpu.dense::<f32>; logits);
        held!(gpu.from::<u32>; positions, targets);
        held!(gpu.from::<u8>; norms);
        gpu.launch(&of.backward([logits, positions, targets], factor, [norms, &slopes.held(&gpu)]))?;
    }
    Ok(slopes.tensor(&gpu, (rows, classes)))
}
