//! `x·Wᵀ + b`.

use super::{adapter::Adapter, norm::wide};
use candle_core::{DType, Result, Tensor};
use std::fmt;
use taskvec_kernels::{linear_t, linear_t_residual};

/// A linear map with its weight as (outputs, inputs), whatever the layout of the file it came from.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// `weight` (outputs, inputs), `bias` (outputs).
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, adapter: None }
    }

    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The same without adding anything to the product.
    pub(crate) fn without_bias(&self) -> Self {
        Self { bias: None, ..self.clone() }
    }

    /// Would what this makes of `x` be the same if `x` were rounded to bf16 first?
    pub(crate) fn rounds(&self, x: &Tensor) -> bool {
        let types = (x.dtype(), self.weight.dtype());
        self.is_fixed(x) && matches!(types, (DType::F32 | DType::BF16, DType::BF16))
    }

    /// Is it a product in f32, without a gradient?
    pub(crate) fn is_plain_f32(&self, x: &Tensor) -> bool {
        self.is_fixed(x) && !self.weight.track_op() && [x.dtype(), self.weight.dtype()] == [DType::F32; 2]
    }

    /// Is it without an update and without a gradient by `x`, on the CPU?
    fn is_fixed(&self, x: &Tensor) -> bool {
        self.adapter.is_none() && !x.track_op() && self.weight.device().is_cpu()
    }

    /// (…, inputs) to (…, outputs), in the type of `x`, which is f32 at least, or was where it is rounded; the weight may have
    /// fewer bits.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(wide(x.dtype()))).transpose()?;
        let y = match self.weight.dtype() {
            // What the operation does not take, it gets wider.
            DType::F16 => linear_t(x, &self.weight.to_dtype(x.dtype())?, bias.as_ref())?,
            _ => linear_t(x, &self.weight, bias.as_ref())?,
        };
        match &self.adapter {
            None => Ok(y),
            Some(adapter) => adapter.added(x, y),
        }
    }

    /// `residual` (…, outputs) and what [`Self::forward`] makes of `x`, with the bytes of the one added to the other.
    pub(crate) fn onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        match (&self.bias, &self.adapter, self.weight.dtype()) {
            (None, None, DType::F32 | DType::F64 | DType::BF16) => linear_t_residual(x, &self.weight, None, residual),
            _ => residual + self.forward(x)?,
        }
    }

    /// From now on with this update, in place of one that was there.
    pub(crate) fn adapt(&mut self, adapter: Adapter) {
        self.adapter = Some(adapter);
    }
}

/// The linear maps of a block, named as in HuggingFace's Llama and Mamba-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    Q,
    K,
    V,
    /// From what the heads read into the residual stream.
    Out,
    Gate,
    Up,
    Down,
    /// Mamba-2: from the residual stream into the mixer.
    MixerIn,
    /// Mamba-2: from the mixer back.
    MixerOut,
}

impl Projection {
    pub const ALL: [Self; 9] =
        [Self::Q, Self::K, Self::V, Self::Out, Self::Gate, Self::Up, Self::Down, Self::MixerIn, Self::MixerOut];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::Out => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::MixerIn => "in_proj",
            Self::MixerOut => "out_proj",
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
