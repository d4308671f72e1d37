//! Gradients of the whole model agree with finite differences, parameter by parameter, in f64.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{DType, Device, Tensor};
use taskvec_kernels::mse_at;
use taskvec_model::spec::DataSpec;
use taskvec_science::{
    data::{Bases, generate},
    model::Transformer,
    rng::{Purpose, Stream},
};

/// Half the distance between the two points of a difference quotient.
const H: f64 = 1e-5;

fn model(seed: u64) -> Transformer {
    let init = Transformer::init(&common::model(), &common::data(), seed, &Device::Cpu).unwrap();
    // Biases away from 0 and norms away from 1, so that a gradient through them cannot be right by accident.
    let mut i = 0u64;
    let moved = init.map(|t| {
        i += 1;
        let mut noise = vec![0.0; t.elem_count()];
        Stream { seed, purpose: Purpose::Init, step: i }.at(1).normals(&mut noise);
        t.to_dtype(DType::F64)? + (Tensor::from_vec(noise, t.dims(), &Device::Cpu)? * 0.1)?
    });
    moved.unwrap().trainable().unwrap()
}

#[test]
fn every_parameter_of_the_model_has_the_right_gradient() {
    let DataSpec::SparseLinear(data) = common::data();
    let batch = generate(&data, Stream { seed: 1, purpose: Purpose::Train, step: 1 }, 0..3, Bases::Drawn);
    let tokens = batch.tokens(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    let targets = batch.targets(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    let network = model(5);
    let loss = |n: &Transformer| mse_at(&n.forward(&tokens, None).unwrap(), &targets).unwrap();
    let gradients = loss(&network).backward().unwrap();
    for (name, parameter) in network.parameters() {
        let gradient = gradients.get(parameter).expect(name).flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let values = parameter.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let largest = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        assert!(largest > 1e-6, "{name} gets no gradient");
        // Seven entries spread over the tensor, and the largest.
        let top = gradient.iter().position(|g| g.abs() == largest).unwrap();
        for at in (0..7).map(|j| j * values.len() / 7).chain([top]) {
            let value_at = |shift: f64| {
                let mut moved = values.clone();
                moved[at] += shift;
                let mut i = 0;
                let changed = network.map(|t| {
                    i += 1;
                    if network.parameters()[i - 1].0 != *name {
                        return Ok(t.detach());
                    }
                    Tensor::from_slice(&moved, t.dims(), &Device::Cpu)
                });
                loss(&changed.unwrap()).to_scalar::<f64>().unwrap()
            };
            let quotient = (value_at(H) - value_at(-H)) / (2.0 * H);
            let error = (quotient - gradient[at]).abs() / largest;
            assert!(error < 1e-6, "{name}[{at}]: {} by backward, {quotient} by difference", gradient[at]);
        }
    }
}
