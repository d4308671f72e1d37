//! Every operation as a case: the shapes of its arguments, the fast and the plain version.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod language;

use candle_core::{DType, Device, Result, Tensor, Var};
use taskvec_kernels as fast;
use taskvec_kernels::reference;

pub type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

pub struct Case {
    pub name: String,
    pub shapes: Vec<Vec<usize>>,
    /// How many of the arguments have gradients.
    pub tracked: usize,
    pub fast: Op,
    pub reference: Op,
}

fn case(
    name: String,
    shapes: Vec<Vec<usize>>,
    fast: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    reference: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Case {
    Case { name, tracked: shapes.len(), shapes, fast: Box::new(fast), reference: Box::new(reference) }
}

pub fn layer_norm(lead: &[usize], d: usize) -> Case {
    let x = [lead, &[d]].concat();
    case(
        format!("layer_norm {x:?}"),
        vec![x, vec![d], vec![d]],
        |a| fast::layer_norm(&a[0], &a[1], &a[2], 1e-5),
        |a| reference::layer_norm(&a[0], &a[1], &a[2], 1e-5),
    )
}

pub fn linears(lead: &[usize], inputs: usize, outputs: usize) -> [Case; 3] {
    let x = [lead, &[inputs]].concat();
    let shapes = vec![x.clone(), vec![inputs, outputs], vec![outputs]];
    let mut with_residual = shapes.clone();
    with_residual.push([lead, &[outputs]].concat());
    [
        case(
            format!("linear {x:?} to {outputs}"),
            shapes.clone(),
            |a| fast::linear(&a[0], &a[1], &a[2]),
            |a| reference::linear(&a[0], &a[1], &a[2]),
        ),
        case(
            format!("linear_gelu {x:?} to {outputs}"),
            shapes,
            |a| fast::linear_gelu(&a[0], &a[1], &a[2]),
            |a| reference::linear_gelu(&a[0], &a[1], &a[2]),
        ),
        case(
            format!("linear_residual {x:?} to {outputs}"),
            with_residual,
            |a| fast::linear_residual(&a[0], &a[1], &a[2], &a[3]),
            |a| reference::linear_residual(&a[0], &a[1], &a[2], &a[3]),
        ),
    ]
}

pub fn attention(batch: usize, t: usize, d: usize, heads: usize) -> Case {
    case(
        format!("causal_attention batch {batch}, T {t}, d {d}, {heads} heads"),
        vec![vec![batch, t, 3 * d]],
        move |a| fast::causal_attention(&a[0], heads),
        move |a| reference::causal_attention(&a[0], heads),
    )
}

pub fn mse(batch: usize, k: usize) -> Case {
    let mut case = case(
        format!("mse_at {batch} × {k}"),
        vec![vec![batch, k], vec![batch, k]],
        |a| fast::mse_at(&a[0], &a[1]),
        |a| reference::mse_at(&a[0], &a[1]),
    );
    case.tracked = 1;
    case
}

/// Shapes that are multiples of nothing, one row, one element, and more rows than are worked on at a time.
pub fn small() -> Vec<Case> {
    let mut cases = vec![mse(1, 1), mse(3, 7), mse(16, 8)];
    for (lead, d) in [(&[1][..], 1), (&[1], 5), (&[2, 3], 16), (&[3, 2, 2], 37), (&[5, 30], 64)] {
        cases.push(layer_norm(lead, d));
    }
    for (lead, inputs, outputs) in
        [(&[1][..], 1, 1), (&[1], 7, 3), (&[2, 3], 4, 1), (&[2, 2, 2], 9, 33), (&[150], 16, 48), (&[7], 1, 65)]
    {
        cases.extend(linears(lead, inputs, outputs));
    }
    for (batch, t, d, heads) in [
        (1, 1, 1, 1),
        (2, 1, 6, 3),
        (1, 2, 8, 8),
        (3, 9, 10, 2),
        (5, 16, 64, 4),
        (2, 17, 20, 1),
        (1, 40, 15, 5),
        (1, 80, 16, 8),
    ] {
        cases.push(attention(batch, t, d, heads));
    }
    cases.extend(language::small());
    cases
}

/// A few of `small`, larger than one piece of work.
pub fn large() -> Vec<Case> {
    let mut cases = vec![layer_norm(&[700], 72), attention(11, 33, 48, 3), mse(128, 40)];
    cases.extend(linears(&[1100], 40, 136));
    cases.extend(linears(&[3, 130], 300, 20));
    cases.extend(language::large());
    cases
}

/// Numbers in [−1, 1) from a counter (SplitMix64): the same in every run.
pub fn numbers(seed: u64, n: usize) -> Vec<f64> {
    (0..n as u64)
        .map(|i| {
            let mut z =
                (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

pub fn tensor(seed: u64, shape: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::from_vec(numbers(seed, shape.iter().product()), shape, &Device::Cpu)?.to_dtype(dtype)
}

pub fn vars(case: &Case, dtype: DType) -> Result<Vec<Var>> {
    case.shapes.iter().enumerate().map(|(i, shape)| Var::from_tensor(&tensor(i as u64 + 1, shape, dtype)?)).collect()
}

/// The output, and the gradients of its sum weighted by arbitrary numbers, for the arguments that `arrange` makes.
pub fn outcome(
    case: &Case,
    op: &Op,
    vars: &[Var],
    arrange: impl Fn(&Var) -> Result<Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let args = vars.iter().map(arrange).collect::<Result<Vec<_>>>()?;
    let out = op(&args)?;
    let weights = tensor(99, out.dims(), out.dtype())?.to_device(out.device())?;
    let grads = (&out * weights)?.sum_all()?.backward()?;
    let grads = vars[..case.tracked]
        .iter()
        .enumerate()
        .map(|(i, var)| {
            grads.get(var).cloned().ok_or_else(|| candle_core::Error::Msg(format!("no gradient of argument {i}")))
        })
        .collect::<Result<_>>()?;
    Ok((out.detach(), grads))
}

pub fn values(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Largest difference, against the largest magnitude.
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!(got.dims(), want.dims(), "{what}");
    assert_eq!(got.dtype(), want.dtype(), "{what}");
    let (got, want) = (values(got)?, values(want)?);
    let scale = want.iter().fold(1e-3, |a: f64, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}: element {i} is {g}, not {w}");
    }
    Ok(())
}
