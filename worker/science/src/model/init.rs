//! Initial values: normals whose deviation depends on the parameter's place, zeros for biases, ones for norms.
//!
//! | parameter | deviation |
//! | --- | --- |
//! | `read_in.weight` | `read_in_std` |
//! | `wpe.weight` | `position_std` |
//! | `*.c_proj.weight` | `std / sqrt(2 L)`, as in GPT-2: 2 L of them add to the residual stream |
//! | all other weights | `std` |
//!
//! Each parameter has a random stream of its own, keyed by its name.

use super::Sizes;
use crate::rng::{Purpose, Stream, name_step};
use candle_core::{Device, Result, Tensor};
use taskvec_model::spec::InitSpec;

/// The initial value of one parameter, in f32.
pub(super) fn parameter(
    init: &InitSpec,
    sizes: Sizes,
    seed: u64,
    name: &str,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    let count = shape.iter().product();
    let values = match kind(name) {
        Kind::Bias => vec![0.0; count],
        Kind::NormWeight => vec![1.0; count],
        Kind::Weight => normals(seed, name, deviation(init, sizes, name), count),
    };
    Tensor::from_vec(values, shape, device)
}

enum Kind {
    Bias,
    NormWeight,
    Weight,
}

fn kind(name: &str) -> Kind {
    let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
    match last {
        "bias" => Kind::Bias,
        _ if module.rsplit('.').next().is_some_and(|m| m.starts_with("ln_")) => Kind::NormWeight,
        _ => Kind::Weight,
    }
}

fn deviation(init: &InitSpec, sizes: Sizes, name: &str) -> f64 {
    match name {
        "read_in.weight" => init.read_in_std,
        "wpe.weight" => init.position_std,
        _ if name.ends_with(".c_proj.weight") => init.std / (2.0 * sizes.layers as f64).sqrt(),
        _ => init.std,
    }
}

fn normals(seed: u64, name: &str, deviation: f64, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Stream { seed, purpose: Purpose::Init, step: name_step(name) }.at(0).normals(&mut values);
    values.into_iter().map(|v| (deviation * v) as f32).collect()
}
