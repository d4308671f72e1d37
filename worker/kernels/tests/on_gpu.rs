//! The operations on tensors that candle has on a GPU, against the plain versions in f64 on the CPU.
#![cfg(feature = "candle-cuda")]

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{Case, assert_close, outcome, tensor, values, vars};
use taskvec_kernels::{linear_t, linear_t_residual};

/// As in the tests of the other versions.
const TOLERANCE: f64 = 2e-5;

/// The first GPU; none, with a word about it, where there is none.
fn gpu() -> Option<Device> {
    let device = Device::new_cuda_with_stream(0);
    if let Err(error) = &device {
        use std::io::Write;
        // To the terminal: cargo keeps what a test that passes prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no GPU ({error})");
    }
    device.ok()
}

/// The result and the gradients by all arguments, in f32 on `device`, are those of the plain version.
fn compare(case: &Case, device: &Device, arrange: impl Fn(&Var) -> Result<Tensor> + Copy, wide: &[Var]) -> Result<()> {
    let there = |var: &Var| Var::from_tensor(&var.to_dtype(DType::F32)?.to_device(device)?);
    let on_gpu = wide.iter().map(there).collect::<Result<Vec<_>>>()?;
    let (out, grads) = outcome(case, &case.fast, &on_gpu, arrange)?;
    let (want, want_grads) = outcome(case, &case.reference, wide, arrange)?;
    let back = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    assert!(out.device().is_cuda(), "{}: the result is on the GPU", case.name);
    assert_close(&case.name, &back(&out)?, &want, TOLERANCE)?;
    for (i, (got, want)) in grads.iter().zip(&want_grads).enumerate() {
        assert_close(&format!("{}, gradient of argument {i}", case.name), &back(got)?, want, TOLERANCE)?;
    }
    Ok(())
}

#[test]
fn what_is_on_a_gpu_agrees_with_the_reference() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    for case in common::small().iter().chain(&common::large()) {
        compare(case, &device, |var| Ok(var.as_tensor().clone()), &vars(case, DType::F64)?)?;
    }
    Ok(())
}

/// Parts of wider rows, some heads among others, and transposed ones.
#[test]
fn so_does_what_lies_apart() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    for case in common::small() {
        for from_last in [1, 2] {
            let dim = |rank: usize| rank.saturating_sub(from_last);
            let wide = case.shapes.iter().enumerate().map(|(i, shape)| {
                let mut wide = shape.clone();
                wide[dim(shape.len())] += 2;
                Var::from_tensor(&tensor(i as u64 + 1, &wide, DType::F64)?)
            });
            let narrow = |var: &Var| {
                let dim = dim(var.rank());
                var.narrow(dim, 1, var.dim(dim)? - 2)
            };
            compare(&case, &device, narrow, &wide.collect::<Result<Vec<_>>>()?)?;
        }
        let turned = case.shapes.iter().enumerate().map(|(i, shape)| {
            let mut turned = shape.clone();
            turned.reverse();
            Var::from_tensor(&tensor(i as u64 + 1, &turned, DType::F64)?)
        });
        let back = |var: &Var| {
            let dims: Vec<usize> = (0..var.rank()).rev().collect();
            var.permute(dims)
        };
        compare(&case, &device, back, &turned.collect::<Result<Vec<_>>>()?)?;
    }
    Ok(())
}

/// Of weights in bf16: the product of what is rounded, in f32, and gradients of exact values.
#[test]
fn weights_in_bf16_do_what_they_do_on_the_cpu() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 300, 70), (20, 61, 49), (60, 40, 100)] {
        let x = tensor(1, &[rows, inputs], DType::F32)?;
        let weight = tensor(2, &[outputs, inputs], DType::F32)?.to_dtype(DType::BF16)?;
        let (bias, residual) = (tensor(3, &[outputs], DType::F32)?, tensor(4, &[rows, outputs], DType::F32)?);
        let all = |device: &Device| -> Result<Vec<Tensor>> {
            let there = |x: &Tensor| x.to_device(device);
            let (x, weight) = (Var::from_tensor(&there(&x)?)?, there(&weight)?);
            let out = linear_t(&x, &weight, Some(&there(&bias)?))?;
            let added = linear_t_residual(&x, &weight, Some(&there(&bias)?), &there(&residual)?)?;
            let grads = (&out * there(&residual)?)?.sum_all()?.backward()?;
            let grad = grads.get(&x).cloned().ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
            [out.detach(), added.detach(), grad].iter().map(|x| x.to_device(&Device::Cpu)).collect()
        };
        let (got, want) = (all(&device)?, all(&Device::Cpu)?);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_close(&format!("{rows} × {inputs} × {outputs}: {i}"), got, want, 1e-6)?;
        }
    }
    Ok(())
}

#[test]
fn the_same_bytes_again() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    for case in common::large() {
        let there = |var: &Var| Var::from_tensor(&var.to_device(&device)?);
        let args = vars(&case, DType::F32)?.iter().map(there).collect::<Result<Vec<_>>>()?;
        let once = || -> Result<Vec<Vec<f64>>> {
            let (out, grads) = outcome(&case, &case.fast, &args, |var| Ok(var.as_tensor().clone()))?;
            std::iter::once(&out).chain(&grads).map(values).collect()
        };
        let bits = |all: Vec<Vec<f64>>| -> Vec<u64> { all.concat().into_iter().map(f64::to_bits).collect() };
        assert_eq!(bits(once()?), bits(once()?), "{}", case.name);
    }
    Ok(())
}
