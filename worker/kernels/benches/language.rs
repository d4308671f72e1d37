//! Microseconds per operation of a language model, fast against plain, at the sizes of SmolLM2-135M: a batch of prompts,
//! forward and with backward, and decoding, forward only.
//!
//! `cargo bench -p taskvec-kernels --bench language` runs all, on one thread and on two; an argument keeps only the lines
//! that contain it. Weights are given in several copies, so that none waits in a cache.

use candle_core::{DType, Device, Result, Tensor, Var};
use std::time::{Duration, Instant};
use taskvec_kernels as fast;
use taskvec_kernels::{Activation, Attend, Rotary, Span, reference};

const WIDTH: usize = 576;
const INNER: usize = 1536;
const VOCABULARY: usize = 49152;
const HEADS: usize = 9;
const GROUPS: usize = 3;
const DIM: usize = 64;
const ATTEND: Attend = Attend { scale: 0.125, softcap: None, window: None };

/// Bytes that fit into no cache.
const MANY: usize = 128 << 20;

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Sync>;

struct Case {
    name: String,
    /// Sets of arguments, used in turn.
    args: Vec<Vec<Tensor>>,
    fast: Op,
    plain: Op,
    /// Of the forward: floating-point operations and bytes that are read or written at least.
    flops: usize,
    bytes: usize,
    backward: bool,
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
}

/// Something whose gradient is wanted.
fn tracked(shape: &[usize]) -> Result<Tensor> {
    Ok(Var::from_tensor(&random(shape)?)?.as_tensor().clone())
}

fn linear(rows: usize, inputs: usize, outputs: usize, dtype: DType) -> Result<Case> {
    let bytes = inputs * outputs * dtype.size_in_bytes();
    let copies = if rows > 64 { 1 } else { (MANY / bytes).clamp(1, 64) };
    let x = tracked(&[rows, inputs])?;
    let args = (0..copies).map(|_| Ok(vec![x.clone(), random(&[outputs, inputs])?.to_dtype(dtype)?]));
    Ok(Case {
        name: format!("linear_t {rows} × {inputs} → {outputs} {}", dtype.as_str()),
        args: args.collect::<Result<_>>()?,
        fast: Box::new(|a| fast::linear_t(&a[0], &a[1], None)),
        plain: Box::new(move |a| reference::linear_t(&a[0], &a[1].to_dtype(DType::F32)?, None)),
        flops: 2 * rows * inputs * outputs,
        bytes: bytes + 4 * rows * (inputs + outputs),
        backward: rows > 64,
    })
}

/// One query of each row after `before` keys, or whole rows.
fn attention(rows: usize, tokens: usize, decoding: bool) -> Result<Case> {
    let row = |i: usize| i * tokens..(i + 1) * tokens;
    let span = |i: usize| match decoding {
        true => Span { queries: i..i + 1, prefix: 0..0, keys: row(i) },
        false => Span::alone(row(i)),
    };
    let spans: Vec<Span> = (0..rows).map(span).collect();
    let queries = spans.last().map_or(0, |span| span.queries.end);
    let (same, seen) = (spans.clone(), if decoding { tokens } else { tokens * (tokens + 1) / 2 });
    let keys = [rows * tokens, GROUPS, DIM];
    let copies = if decoding { (MANY / (8 * rows * tokens * GROUPS * DIM)).clamp(1, 32) } else { 1 };
    let args = (0..copies).map(|_| Ok(vec![tracked(&[queries, HEADS, DIM])?, tracked(&keys)?, tracked(&keys)?]));
    Ok(Case {
        name: format!("attend {rows} rows of {tokens}{}", if decoding { ", decoding" } else { "" }),
        args: args.collect::<Result<_>>()?,
        fast: Box::new(move |a| fast::attend(&a[0], &a[1], &a[2], &spans, &ATTEND)),
        plain: Box::new(move |a| reference::attend(&a[0], &a[1], &a[2], &same, &ATTEND)),
        flops: 4 * rows * seen * HEADS * DIM,
        bytes: 4 * DIM * (2 * queries * HEADS + 2 * rows * tokens * GROUPS),
        backward: !decoding,
    })
}

/// Element by element: one argument of each shape; `passes` over the first of them in all.
fn elementwise(name: &str, shapes: &[&[usize]], passes: usize, fast: Op, plain: Op) -> Result<Case> {
    Ok(Case {
        name: format!("{name} {:?}", shapes[0]),
        args: vec![shapes.iter().map(|shape| tracked(shape)).collect::<Result<_>>()?],
        fast,
        plain,
        flops: 0,
        bytes: 4 * passes * shapes[0].iter().product::<usize>(),
        backward: true,
    })
}

fn elementwise_cases(n: usize) -> Result<Vec<Case>> {
    let angles = random(&[n, DIM / 2])?;
    let rotary = Rotary { cos: angles.cos()?, sin: angles.sin()? };
    let same = rotary.clone();
    let classes = n / 8;
    let targets: Vec<u32> = (0..classes).map(|i| (i * 191) as u32).collect();
    let same_targets = targets.clone();
    Ok(vec![
        elementwise(
            "rms_norm",
            &[&[n, WIDTH], &[WIDTH]],
            2,
            Box::new(|a| fast::rms_norm(&a[0], &a[1], 1e-5)),
            Box::new(|a| reference::rms_norm(&a[0], &a[1], 1e-5)),
        )?,
        elementwise(
            "rotate",
            &[&[n, HEADS, DIM]],
            2,
            Box::new(move |a| fast::rotate(&a[0], &rotary)),
            Box::new(move |a| reference::rotate(&a[0], &same)),
        )?,
        elementwise(
            "gated silu",
            &[&[n, INNER], &[n, INNER]],
            3,
            Box::new(|a| fast::gated(&a[0], &a[1], Activation::Silu)),
            Box::new(|a| reference::gated(&a[0], &a[1], Activation::Silu)),
        )?,
        elementwise(
            "cross_entropy",
            &[&[classes, VOCABULARY]],
            1,
            Box::new(move |a| fast::cross_entropy(&a[0], &targets)),
            Box::new(move |a| reference::cross_entropy(&a[0], &same_targets)),
        )?,
    ])
}

fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (rows, dtype) in [(2048, DType::F32), (64, DType::F32), (8, DType::F32), (8, DType::BF16), (1, DType::F32)] {
        cases.push(linear(rows, WIDTH, INNER, dtype)?);
        cases.push(linear(rows, INNER, WIDTH, dtype)?);
    }
    for (rows, dtype) in [(256, DType::F32), (8, DType::F32), (8, DType::BF16), (1, DType::F32), (1, DType::BF16)] {
        cases.push(linear(rows, WIDTH, VOCABULARY, dtype)?);
    }
    for (rows, tokens, decoding) in
        [(32, 64, false), (8, 256, false), (1, 2048, false), (8, 256, true), (1, 2048, true)]
    {
        cases.push(attention(rows, tokens, decoding)?);
    }
    cases.extend(elementwise_cases(2048)?);
    Ok(cases)
}

/// The fastest of the calls that fit into a quarter of a second, at least two of them, in µs.
fn fastest(mut call: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    call(0)?;
    let (begin, mut best, mut calls) = (Instant::now(), Duration::MAX, 0);
    while begin.elapsed() < Duration::from_millis(250) || calls < 2 {
        calls += 1;
        let start = Instant::now();
        call(calls)?;
        best = best.min(start.elapsed());
    }
    Ok(best.as_secs_f64() * 1e6)
}

fn run(case: &Case) -> Result<()> {
    let args = |i: usize| &case.args[i % case.args.len()];
    let detached: Vec<Vec<Tensor>> = case.args.iter().map(|set| set.iter().map(Tensor::detach).collect()).collect();
    let forward = |op: &Op| fastest(|i| op(&detached[i % detached.len()]).map(drop));
    let both = |op: &Op| match case.backward {
        true => fastest(|i| op(args(i))?.backward().map(drop)).map(|time| format!("{time:.0}")),
        false => Ok(String::from("–")),
    };
    let (time, with_backward) = (forward(&case.fast)?, both(&case.fast)?);
    let (plain, plain_with_backward) = (forward(&case.plain)?, both(&case.plain)?);
    let rate = |amount: usize| amount as f64 / time / 1e3;
    println!(
        "{:<40}{time:>10.0}{:>10.0}{:>8.1}{with_backward:>10}{plain:>12.0}{plain_with_backward:>10}",
        case.name,
        rate(case.flops),
        rate(case.bytes)
    );
    Ok(())
}

fn main() -> Result<()> {
    fast::process::prepare();
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    for threads in [1, 2] {
        println!("\n{threads} threads, µs");
        println!(
            "{:<40}{:>10}{:>10}{:>8}{:>10}{:>12}{:>10}",
            "", "forward", "GFLOP/s", "GB/s", "+ backw.", "plain", "+ backw."
        );
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        for case in cases()?.iter().filter(|case| case.name.contains(&only)) {
            pool.install(|| run(case))?;
        }
    }
    Ok(())
}
