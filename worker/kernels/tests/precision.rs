//! Products of rounded factors are the products of what rounding makes of them.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::numbers;
use taskvec_kernels::{Pairs, Precision, bf16_pairs, slices::Products};

/// Rounded by candle's own conversion.
fn rounded(x: &[f32]) -> Result<Vec<f32>> {
    Tensor::new(x, &Device::Cpu)?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.to_vec1()
}

fn floats(seed: u64, len: usize) -> Vec<f32> {
    numbers(seed, len).into_iter().map(|x| x as f32).collect()
}

/// All products of a layer of these sizes, with factors `x`, `weight` and `grad`: everything else is the same.
fn all(products: Products, [rows, inputs, outputs]: [usize; 3], [x, weight, grad]: [&[f32]; 3]) -> Vec<Vec<u32>> {
    let (bias, residual) = (floats(4, outputs), floats(5, rows * outputs));
    let slope = floats(6, rows * inputs);
    let mut results = Vec::new();
    let mut forward = |fill: &dyn Fn(&mut [f32])| {
        let mut out = vec![f32::NAN; rows * outputs];
        fill(&mut out);
        results.push(out);
    };
    forward(&|out| products.linear(x, weight, &bias, out));
    forward(&|out| products.linear_t(x, weight, &bias, out));
    forward(&|out| products.linear_residual(x, weight, &bias, &residual, out));
    forward(&|out| products.linear_gelu(x, weight, &bias, out, &mut vec![0.0; rows * outputs]));
    let mut backward = |fill: &dyn Fn(&mut [f32])| {
        let mut out = vec![f32::NAN; rows * inputs];
        fill(&mut out);
        results.push(out);
    };
    backward(&|out| products.gradient_of_input(grad, weight, outputs, out));
    backward(&|out| products.gradient_of_input_t(grad, weight, outputs, out));
    backward(&|out| products.gradient_before_gelu(grad, weight, outputs, &slope, out));
    let (mut by_weight, mut by_bias) = (vec![f32::NAN; inputs * outputs], vec![f32::NAN; outputs]);
    products.gradient_of_linear(x, grad, &mut by_weight, &mut by_bias);
    results.push(by_weight.clone());
    products.gradient_of_linear_t(x, grad, &mut by_weight, &mut by_bias);
    results.push(by_weight);
    results.into_iter().map(|values| values.into_iter().map(f32::to_bits).collect()).collect()
}

/// Up to 256 terms are one sum, whatever their bits; more are several, of other lengths where they are of bf16.
#[test]
fn factors_are_rounded_and_nothing_else() -> Result<()> {
    for size @ [rows, inputs, outputs] in [[1, 1, 1], [3, 7, 5], [40, 64, 33], [65, 250, 96]] {
        let (x, weight, grad) = (floats(1, rows * inputs), floats(2, inputs * outputs), floats(3, rows * outputs));
        let exact = all(Products::default(), size, [&x, &weight, &grad]);
        let bf16 = all(Products { precision: Precision::Bf16 }, size, [&x, &weight, &grad]);
        let want = all(Products::default(), size, [&rounded(&x)?, &rounded(&weight)?, &rounded(&grad)?]);
        match bf16_pairs() {
            // In another order: to the accuracy of f32.
            Some(Pairs::Tiles) => {
                for (bf16, want) in bf16.concat().into_iter().zip(want.concat()) {
                    let [bf16, want] = [bf16, want].map(f32::from_bits);
                    assert!((bf16 - want).abs() <= 1e-5, "{size:?}: {bf16}, not {want}");
                }
            }
            _ => assert_eq!(bf16, want, "{size:?}"),
        }
        let tf32 = all(Products { precision: Precision::Tf32 }, size, [&x, &weight, &grad]);
        let near = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| Precision::Tf32.nearest(*x)).collect() };
        assert_eq!(tf32, all(Products::default(), size, [&near(&x), &near(&weight), &near(&grad)]), "{size:?}");
        for (i, exact) in exact.iter().enumerate() {
            assert!(exact != &bf16[i] && exact != &tf32[i] && bf16[i] != tf32[i], "{size:?}: product {i} is rounded");
        }
    }
    Ok(())
}
