//! Adam against its definition and PyTorch (fixtures/adamw.py), and the norm.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{numbers, tensor, values};
use taskvec_kernels::{
    Adam,
    slices::{self, Update},
    sum_of_squares,
};

/// torch.optim.Adam, written out for one element: (parameter, m, v).
fn definition(adam: Adam, (p, m, v): (f64, f64, f64), g: f64, learning_rate: f64, t: i32) -> (f64, f64, f64) {
    let m = adam.beta1 * m + (1.0 - adam.beta1) * g;
    let v = adam.beta2 * v + (1.0 - adam.beta2) * g * g;
    let step_size = learning_rate / (1.0 - adam.beta1.powi(t));
    let denominator = v.sqrt() / (1.0 - adam.beta2.powi(t)).sqrt() + adam.epsilon;
    (p - step_size * m / denominator, m, v)
}

#[test]
fn adam_is_its_definition() -> Result<()> {
    let adam = Adam { beta1: 0.9, beta2: 0.9999, epsilon: 1e-8, weight_decay: 0.0 };
    for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F64, 1e-13)] {
        for n in [1, 17, 40_000] {
            let param = tensor(1, &[n], dtype)?;
            let (m, v) = (param.zeros_like()?, param.zeros_like()?);
            let mut want: Vec<_> = values(&param)?.into_iter().map(|p| (p, 0.0, 0.0)).collect();
            for t in 1..=5 {
                let grad = tensor(10 + t, &[n], dtype)?;
                adam.update(&param, &grad, &m, &v, 1e-2, t, 0.25)?;
                for (want, g) in want.iter_mut().zip(values(&grad)?) {
                    *want = definition(adam, *want, g * 0.25, 1e-2, t as i32);
                }
            }
            for (i, (p, w)) in values(&param)?.into_iter().zip(&want).enumerate() {
                assert!((p - w.0).abs() < tolerance, "{dtype:?}, element {i} of {n}: {p}, not {}", w.0);
            }
            for (i, (v, w)) in values(&v)?.into_iter().zip(&want).enumerate() {
                assert!((v - w.2).abs() <= 1e-6 * w.2, "{dtype:?}, second moment {i} of {n}: {v}, not {}", w.2);
            }
        }
    }
    Ok(())
}

/// The constants of the fixture.
const ADAMW: Adam = Adam { beta1: 0.9, beta2: 0.99, epsilon: 1e-3, weight_decay: 0.4 };

#[test]
fn weight_decay_is_that_of_pytorchs_adamw() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/adamw.safetensors");
    let fixture = candle_core::safetensors::load(path, &Device::Cpu)?;
    let rates = values(&fixture["rates"])?;
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
        // A copy: what is updated in place must not be the fixture.
        let param = fixture["init"].to_dtype(dtype)?.copy()?;
        let (m, v) = (param.zeros_like()?, param.zeros_like()?);
        for (i, &rate) in rates.iter().enumerate() {
            let grad = fixture["gradients"].get(i)?.to_dtype(dtype)?;
            ADAMW.update(&param, &grad, &m, &v, rate, i as u64 + 1, 1.0)?;
            let want = fixture["after"].get(i)?.to_dtype(dtype)?;
            common::assert_close(&format!("{dtype:?}, update {i}"), &param, &want, tolerance)?;
        }
    }
    Ok(())
}

#[test]
fn without_decay_every_bit_is_that_of_plain_adam() {
    let adam = Adam { weight_decay: 0.0, ..ADAMW };
    let floats = |seed| -> Vec<f32> { numbers(seed, 1000).into_iter().map(|x| x as f32).collect() };
    let ([mut param, grad, mut m], mut v) = ([1, 2, 3].map(floats), floats(4));
    v.iter_mut().for_each(|v| *v *= *v);
    // Zeros of both signs too, without a gradient and with one.
    for (i, zero) in [0.0, -0.0, 0.0, -0.0].into_iter().enumerate() {
        (param[i], m[i]) = (zero, if i < 2 { 0.0 } else { -0.0 });
    }
    let grad: Vec<f32> = grad.iter().enumerate().map(|(i, g)| if i < 4 { 0.0 } else { *g }).collect();
    let rate = (0.01 / (1.0 - 0.9f64.powi(3))) as f32;
    let correction = (1.0 / (1.0 - 0.99f64.powi(3)).sqrt()) as f32;
    let update = |((p, g), (m, v)): ((&f32, &f32), (&f32, &f32))| {
        let m = m * 0.9 + g * (1.0f64 - 0.9) as f32;
        let v = v * 0.99 + g * g * (1.0f64 - 0.99) as f32;
        (p - rate * m / (v.sqrt() * correction + 1e-3)).to_bits()
    };
    let want: Vec<u32> = param.iter().zip(&grad).zip(m.iter().zip(&v)).map(update).collect();
    slices::adam(&adam, &mut param, &grad, [&mut m, &mut v], Update { t: 3, learning_rate: 0.01, grad_scale: 1.0 });
    assert_eq!(param.iter().map(|p| p.to_bits()).collect::<Vec<_>>(), want);
}

#[test]
fn adam_writes_only_through_the_view_it_is_given() -> Result<()> {
    let adam = Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let all = tensor(1, &[3, 4], DType::F32)?;
    let before = values(&all)?;
    let row = all.narrow(0, 1, 1)?;
    let grad = tensor(2, &[4, 1], DType::F32)?.t()?;
    adam.update(&row, &grad, &row.zeros_like()?, &row.zeros_like()?, 0.1, 1, 1.0)?;
    let after = values(&all)?;
    assert_eq!((&before[..4], &before[8..]), (&after[..4], &after[8..]));
    for (i, g) in values(&grad)?.iter().enumerate() {
        assert!((before[4 + i] - after[4 + i] - 0.1 * g.signum()).abs() < 1e-6, "the first step is the learning rate");
    }
    Ok(())
}

#[test]
fn adam_refuses_what_does_not_fit() -> Result<()> {
    let adam = Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let [a, b, wide] = [tensor(1, &[3], DType::F32)?, tensor(2, &[4], DType::F32)?, tensor(3, &[3], DType::F64)?];
    assert!(adam.update(&a, &b, &a.zeros_like()?, &a.zeros_like()?, 0.1, 1, 1.0).is_err());
    assert!(adam.update(&a, &wide, &a.zeros_like()?, &a.zeros_like()?, 0.1, 1, 1.0).is_err());
    assert!(adam.update(&a, &a.copy()?, &a.zeros_like()?, &a.zeros_like()?, 0.1, 0, 1.0).is_err());
    // What is written must lie together.
    let apart = tensor(1, &[3, 2], DType::F32)?.narrow(1, 0, 1)?;
    let together = || tensor(2, &[3, 1], DType::F32);
    assert!(adam.update(&apart, &together()?, &together()?, &together()?, 0.1, 1, 1.0).is_err());
    assert!(adam.update(&together()?, &together()?, &apart, &together()?, 0.1, 1, 1.0).is_err());
    Ok(())
}

#[test]
fn adam_keeps_nan_and_copes_with_the_extreme() -> Result<()> {
    let of = |x: f64| Tensor::full(x as f32, 3, &Device::Cpu);
    let update = |[param, grad, m, v]: [f64; 4]| -> Result<[f64; 3]> {
        let [param, grad, m, v] = [of(param)?, of(grad)?, of(m)?, of(v)?];
        ADAMW.update(&param, &grad, &m, &v, 1e-3, 2, 1.0)?;
        Ok([values(&param)?[1], values(&m)?[1], values(&v)?[1]])
    };
    let usual = [1.0, 0.5, 0.1, 0.2];
    for nan in 0..4 {
        let mut inputs = usual;
        inputs[nan] = f64::NAN;
        assert!(update(inputs)?[0].is_nan(), "NaN in input {nan} is lost");
    }
    for size in [1e-30, 1e-20, 1e4, 1e15] {
        for scaled in 0..3 {
            let mut inputs = usual;
            inputs[scaled] *= size;
            assert!(update(inputs)?.iter().all(|x| x.is_finite()), "input {scaled} times {size}");
        }
    }
    // Nothing to go by is no update, whatever the second moment's square root divides.
    assert_eq!(update([0.0; 4])?, [0.0; 3]);
    Ok(())
}

#[test]
fn the_norm_is_exact_and_keeps_nan() -> Result<()> {
    for n in [0, 1, 15, 100_000] {
        let want: f64 = numbers(5, n).iter().map(|x| f64::from(*x as f32).powi(2)).sum();
        let got = sum_of_squares(&tensor(5, &[n], DType::F32)?)?;
        assert!((got - want).abs() <= 1e-12 * want, "{n}: {got}, not {want}");
    }
    let strided = Tensor::new(&[[1f64, 2.0], [3.0, 4.0]], &Device::Cpu)?.narrow(1, 1, 1)?;
    assert_eq!(sum_of_squares(&strided)?, 20.0);
    assert!(sum_of_squares(&Tensor::new(&[1f32, f32::NAN], &Device::Cpu)?)?.is_nan());
    let extreme = sum_of_squares(&Tensor::new(&[1e-30f32, 1e38], &Device::Cpu)?)?;
    assert!((extreme / f64::from(1e38f32).powi(2) - 1.0).abs() < 1e-15, "{extreme}");
    Ok(())
}
