//! Products with weights of language models.

use super::{Given, Gpu};
use crate::reference;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, backend::BackendStorage,
};
use cudarc::cublas::{result, sys};
use half::bf16;
use std::{ffi::c_int, ptr::from_ref};

/// `x·Wᵀ + b`, plus a residual where there is one, as [`linear_t`](crate::linear_t()) and
/// [`linear_t_residual`](crate::linear_t_residual()) on the CPU: beside a weight in bf16 an `x` in f32 is rounded, sums are
/// f32, and gradients are of exact values.
pub(crate) fn linear_t(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let y = match (x.dtype(), weight.dtype()) {
        (DType::F32, DType::BF16) => {
            let (outputs, inputs) = weight.dims2()?;
            let mut shape = x.dims().to_vec();
            shape.pop();
            shape.push(outputs);
            x.reshape(((), inputs))?.contiguous()?.apply_op2(&weight.contiguous()?, Rounded)?.reshape(shape)?
        }
        (DType::BF16, _) => candle_core::bail!("linear_t: what is rounded before is for the CPU"),
        (wide, _) => reference::linear_t(&x.contiguous()?, &weight.to_dtype(wide)?.contiguous()?, None)?,
    };
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    match residual {
        Some(residual) => residual + y,
        None => Ok(y),
    }
}

/// `x` (N, inputs) in f32, rounded, times a weight (outputs, inputs) in bf16: (N, outputs) in f32.
struct Rounded;

impl CustomOp2 for Rounded {
    fn name(&self) -> &'static str {
        "linear_t"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("linear_t: the CPU has its own product")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        weight: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let gpu = Gpu::of(&x.device)?;
        let (rows, inputs) = xl.shape().dims2()?;
        let outputs = wl.dims()[0];
        let rounded = x.to_dtype(xl, DType::BF16)?;
        let mut out = gpu.room::<f32>(rows * outputs)?;
        multiply(&gpu, [outputs, rows, inputs], (weight, wl), (&rounded, &Layout::contiguous(xl.shape())), &mut out)?;
        Ok((out.storage(&gpu), (rows, outputs).into()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if weight.track_op() {
            candle_core::bail!("linear_t: a weight in bf16 beside x in f32 gets no gradient");
        }
        Ok((x.track_op().then(|| grad.matmul(&weight.to_dtype(DType::F32)?)).transpose()?, None))
    }
}

/// cuBLAS has columns first, so that it sees every matrix transposed: outᵀ (m, n) = W (m, k) · xᵀ (k, n).
fn multiply(gpu: &Gpu, extent: [usize; 3], weight: Given<'_>, x: Given<'_>, out: &mut super::Made<f32>) -> Result<()> {
    let size = |n: usize| c_int::try_from(n).map_err(Error::wrap);
    let [m, n, k] = extent;
    let [m, n, k] = [size(m)?, size(n)?, size(k)?];
    let (weight, x, out) = (gpu.from::<bf16>(weight)?, gpu.from::<bf16>(x)?, out.held(gpu));
    let (one, zero) = (1.0f32, 0.0f32);
    let library = gpu.candle.cublas_handle();
    let (narrow, wide) = (sys::cudaDataType::CUDA_R_16BF, sys::cudaDataType::CUDA_R_32F);
    // SAFETY: the matrices are contiguous, of these sizes, and live; the library's handle is of their device and stream.
    unsafe {
        result::gemm_ex(
            *library.handle(),
            sys::cublasOperation_t::CUBLAS_OP_T,
            sys::cublasOperation_t::CUBLAS_OP_N,
            m,
            n,
            k,
            from_ref(&one).cast(),
            weight.pointer(),
            narrow,
            k,
            x.pointer(),
            narrow,
            k,
            from_ref(&zero).cast(),
            out.pointer().cast_mut(),
            wide,
            m,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(Error::wrap)
}
