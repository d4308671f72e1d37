//! Norms over the last dimension.

use candle_core::{DType, Device, Result, Tensor};
use taskvec_kernels::{layer_norm, rms_norm, rms_norm_rounded, rounded};

/// A norm with its parameters, which are kept in f32 at least.
#[derive(Clone)]
pub(crate) struct Norm {
    epsilon: f64,
    parameters: Parameters,
}

#[derive(Clone)]
enum Parameters {
    Rms(Tensor),
    Layer { weight: Tensor, bias: Tensor },
}

impl Norm {
    /// `x / √(mean(x²) + ε) · weight`.
    pub(crate) fn rms(weight: Tensor, epsilon: f64) -> Result<Self> {
        Ok(Self { epsilon, parameters: Parameters::Rms(weight.to_dtype(wide(weight.dtype()))?) })
    }

    /// The same with `1 + weight`.
    pub(crate) fn rms_plus_one(weight: Tensor, epsilon: f64) -> Result<Self> {
        Self::rms((weight.to_dtype(wide(weight.dtype()))? + 1.0)?, epsilon)
    }

    /// Layer norm with weight and bias.
    pub(crate) fn layer(weight: Tensor, bias: Tensor, epsilon: f64) -> Result<Self> {
        let dtype = wide(weight.dtype());
        let parameters = Parameters::Layer { weight: weight.to_dtype(dtype)?, bias: bias.to_dtype(dtype)? };
        Ok(Self { epsilon, parameters })
    }

    /// Layer norm without parameters, over `width` elements.
    pub(crate) fn layer_plain(width: usize, epsilon: f64, dtype: DType, device: &Device) -> Result<Self> {
        let dtype = wide(dtype);
        Self::layer(Tensor::ones(width, dtype, device)?, Tensor::zeros(width, dtype, device)?, epsilon)
    }

    /// `x` (…, width) of any float type; computed in f32 at least, given back in the type of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(wide(x.dtype()))?;
        let normed = match &self.parameters {
            Parameters::Rms(weight) => rms_norm(&wide, weight, self.epsilon)?,
            Parameters::Layer { weight, bias } => layer_norm(&wide, weight, bias, self.epsilon)?,
        };
        normed.to_dtype(x.dtype())
    }

    /// The same of `x` in f32, rounded to bf16.
    pub(crate) fn rounded(&self, x: &Tensor) -> Result<Tensor> {
        match &self.parameters {
            Parameters::Rms(weight) => rms_norm_rounded(x, weight, self.epsilon),
            Parameters::Layer { .. } => rounded(&self.forward(x)?),
        }
    }
}

/// The type in which sums over many elements are taken: 16 bits are too few.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
