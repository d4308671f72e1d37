//! Rotary positions (Su et al. 2021) and how Llama 3.1 stretches them.

use super::config::{RotaryConfig, RotaryScaling};
use candle_core::{DType, Device, Result, Tensor};
use std::f64::consts::TAU;
use taskvec_kernels::Rotary;

/// Angles per position of each pair of elements of a head. In f32, and multiplied with positions in f32, as models were
/// trained with them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frequencies(Vec<f32>);

impl Frequencies {
    pub(crate) fn new(config: &RotaryConfig, head: usize) -> Self {
        let plain = (0..head / 2).map(|i| (1.0 / config.base.powf((2 * i) as f64 / head as f64)) as f32);
        Self(plain.enumerate().map(|(i, f)| scaled(i, f64::from(f), &config.scaling) as f32).collect())
    }

    /// Cosines and sines for tokens at `positions`, (N, D/2) in `dtype`.
    pub(crate) fn at(&self, positions: &[usize], dtype: DType, device: &Device) -> Result<Rotary> {
        // Positions of rows overlap: angles are made once for each and then copied.
        let first = positions.iter().min().copied().unwrap_or(0);
        let end = positions.iter().max().map_or(first, |last| last + 1);
        let angles = (first..end).flat_map(|p| self.0.iter().map(move |f| f64::from(p as f32 * f)));
        let (sin, cos): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
        let rows: Vec<u32> = positions.iter().map(|p| (p - first) as u32).collect();
        let rows = Tensor::new(rows, device)?;
        let table = |values: Vec<f64>| {
            Tensor::from_vec(values, (end - first, self.0.len()), &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)?
                .index_select(&rows, 0)
        };
        Ok(Rotary { cos: table(cos)?, sin: table(sin)? })
    }
}

/// What becomes of frequency `i`.
fn scaled(i: usize, frequency: f64, scaling: &RotaryScaling) -> f64 {
    match scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Factors(factors) => frequency / f64::from(factors[i]),
        RotaryScaling::Llama3 { factor, low, high, original_context } => {
            // Turns that a pair of elements makes within the original context: few for low frequencies.
            let turns = original_context * frequency / TAU;
            let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - keep) * frequency / factor + keep * frequency
        }
    }
}
