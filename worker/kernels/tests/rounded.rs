//! What is made in bf16 for products has the bytes that products would round it to, and so do the products.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::numbers;
use half::bf16;
use taskvec_kernels::{
    Activation, gated, gated_linear, linear_t, linear_t_residual, rms_norm, rms_norm_rounded, rounded,
};

fn tensor(seed: u64, rows: usize, columns: usize) -> Result<Tensor> {
    let values: Vec<f32> = numbers(seed, rows * columns).into_iter().map(|x| x as f32).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

/// (outputs, inputs) in bf16.
fn weight(seed: u64, outputs: usize, inputs: usize) -> Result<Tensor> {
    tensor(seed, outputs, inputs)?.to_dtype(DType::BF16)
}

fn bits(x: &Tensor) -> Result<Vec<u16>> {
    assert_eq!(x.dtype(), DType::BF16);
    Ok(x.flatten_all()?.to_vec1::<bf16>()?.into_iter().map(bf16::to_bits).collect())
}

fn wide_bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

const SHAPES: [[usize; 3]; 8] =
    [[1, 1, 1], [1, 2, 1], [3, 50, 7], [33, 64, 97], [70, 576, 100], [130, 1030, 48], [5, 7000, 3], [600, 96, 200]];

#[test]
fn rounding_is_candles() -> Result<()> {
    for [rows, columns, _] in SHAPES {
        let x = tensor(1, rows, columns)?;
        assert_eq!(bits(&rounded(&x)?)?, bits(&x.to_dtype(DType::BF16)?)?);
        let across = x.t()?;
        assert_eq!(bits(&rounded(&across)?)?, bits(&across.contiguous()?.to_dtype(DType::BF16)?)?, "strided");
    }
    let extremes = Tensor::new(&[f32::MAX, f32::MIN, f32::INFINITY, -0.0, 1e-45], &Device::Cpu)?;
    assert_eq!(bits(&rounded(&extremes)?)?, bits(&extremes.to_dtype(DType::BF16)?)?);
    assert!(rounded(&Tensor::new(&[f32::NAN], &Device::Cpu)?)?.to_vec1::<bf16>()?[0].is_nan());
    Ok(())
}

#[test]
fn norms_and_products_of_rounded_numbers_have_the_bytes_of_those_that_round() -> Result<()> {
    for [rows, inputs, outputs] in SHAPES {
        let (x, scale) = (tensor(1, rows, inputs)?, tensor(2, 1, inputs)?.squeeze(0)?);
        let normed = rms_norm_rounded(&x, &scale, 1e-5)?;
        assert_eq!(bits(&normed)?, bits(&rounded(&rms_norm(&x, &scale, 1e-5)?)?)?, "{rows} × {inputs}");
        let (w, bias, residual) =
            (weight(3, outputs, inputs)?, tensor(4, 1, outputs)?.squeeze(0)?, tensor(5, rows, outputs)?);
        for bias in [None, Some(&bias)] {
            let want = wide_bits(&linear_t(&x, &w, bias)?)?;
            assert_eq!(wide_bits(&linear_t(&rounded(&x)?, &w, bias)?)?, want, "{rows} × {inputs} × {outputs}");
            let want = wide_bits(&linear_t_residual(&x, &w, bias, &residual)?)?;
            assert_eq!(wide_bits(&linear_t_residual(&rounded(&x)?, &w, bias, &residual)?)?, want);
        }
    }
    Ok(())
}

#[test]
fn a_gated_layer_has_the_bytes_of_its_parts() -> Result<()> {
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        for [rows, inputs, outputs] in SHAPES {
            let x = tensor(1, rows, inputs)?;
            let (gate, up) = (weight(2, outputs, inputs)?, weight(3, outputs, inputs)?);
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let apart = gated(&linear_t(&x, &gate, None)?, &linear_t(&x, &up, None)?, activation)?;
                let want = bits(&rounded(&apart)?)?;
                let wide = [&gate, &up].map(|weight| weight.to_dtype(DType::F32));
                let [wide_gate, wide_up] = [wide[0].as_ref(), wide[1].as_ref()].map(|w| w.expect("f32"));
                let apart = gated(&linear_t(&x, wide_gate, None)?, &linear_t(&x, wide_up, None)?, activation)?;
                let together = pool.install(|| gated_linear(&x, [wide_gate, wide_up], activation))?;
                assert_eq!(wide_bits(&together)?, wide_bits(&apart)?, "{rows} × {inputs} × {outputs} in f32");
                pool.install(|| -> Result<()> {
                    let together = gated_linear(&x, [&gate, &up], activation)?;
                    assert_eq!(together.dims(), [rows, outputs]);
                    assert_eq!(bits(&together)?, want, "{rows} × {inputs} × {outputs}");
                    assert_eq!(bits(&gated_linear(&rounded(&x)?, [&gate, &up], activation)?)?, want, "rounded before");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn nan_stays_in_its_row_and_no_rows_give_none() -> Result<()> {
    let (x, gate, up) = (tensor(1, 40, 64)?, weight(2, 50, 64)?, weight(3, 50, 64)?);
    let hole = Tensor::full(f32::NAN, (1, 1), &Device::Cpu)?;
    let x = x.slice_assign(&[17..18, 5..6], &hole)?;
    let out: Vec<Vec<bf16>> = gated_linear(&x, [&gate, &up], Activation::Silu)?.to_vec2()?;
    for (row, values) in out.iter().enumerate() {
        assert!(values.iter().all(|value| value.is_nan() == (row == 17)), "row {row}");
    }
    let none = x.narrow(0, 0, 0)?;
    assert_eq!(gated_linear(&none, [&gate, &up], Activation::Silu)?.dims(), [0, 50]);
    assert_eq!(linear_t(&rounded(&none)?, &gate, None)?.dims(), [0, 50]);
    Ok(())
}

#[test]
fn a_gradient_is_refused_instead_of_lost() -> Result<()> {
    let x = Var::from_tensor(&tensor(1, 4, 8)?)?;
    let (scale, w) = (Tensor::ones(8, DType::F32, &Device::Cpu)?, weight(2, 6, 8)?);
    for result in [rounded(&x), rms_norm_rounded(&x, &scale, 1e-5), gated_linear(&x, [&w, &w], Activation::Silu)] {
        let error = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("get no gradient"), "{error}");
    }
    let (x, weight) = (tensor(1, 4, 8)?, Var::from_tensor(&tensor(2, 6, 8)?)?);
    let error = gated_linear(&x, [&weight, &weight], Activation::Silu).err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("get no gradient")), "of weights in f32");
    let mixed = gated_linear(&x, [&w, &weight.as_detached_tensor()], Activation::Silu).err().map(|e| e.to_string());
    assert!(mixed.is_some_and(|error| error.contains("[F32, BF16, F32]")));
    let odd = gated_linear(&tensor(1, 4, 7)?, [&w, &w], Activation::Silu).err().map(|e| e.to_string());
    assert!(odd.is_some_and(|error| error.contains("[4, 7], [6, 8], [6, 8]")));
    Ok(())
}
