//! Microseconds per operation, forward and backward, fast against reference, at the shapes of the quickstart (one
//! thread) and of the paper's model (two); and the rate of the matrix product beneath them.
//!
//! `cargo bench -p taskvec-kernels` runs all; an argument keeps only the lines that contain it.

mod timing;

use candle_core::{DType, Device, Result, Tensor, Var};
use std::time::{Duration, Instant};
use taskvec_kernels as fast;
use taskvec_kernels::reference;
use timing::{cpu_time, fastest};

struct Shape {
    name: &'static str,
    batch: usize,
    tokens: usize,
    width: usize,
    heads: usize,
    layers: usize,
    threads: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "quickstart", batch: 64, tokens: 16, width: 64, heads: 4, layers: 3, threads: 1 },
    Shape { name: "paper", batch: 128, tokens: 40, width: 256, heads: 8, layers: 12, threads: 2 },
];

type Op = fn(&[Var], usize) -> Result<Tensor>;

struct Case {
    name: &'static str,
    args: Vec<Var>,
    fast: Op,
    reference: Op,
    /// Floating-point operations of the products, forward and backward.
    flops: usize,
}

fn var(shape: &[usize], scale: f32) -> Result<Var> {
    Var::from_tensor(&Tensor::randn(0f32, scale, shape, &Device::Cpu)?)
}

/// x, weight, bias.
fn weighted(s: &Shape, inputs: usize, outputs: usize) -> Result<Vec<Var>> {
    let scale = 1.0 / (inputs as f32).sqrt();
    Ok(vec![var(&[s.batch, s.tokens, inputs], 1.0)?, var(&[inputs, outputs], scale)?, var(&[outputs], 0.1)?])
}

fn cases(s: &Shape) -> Result<Vec<Case>> {
    let d = s.width;
    let product = |i, o| 6 * s.batch * s.tokens * i * o;
    let mut residual = weighted(s, 4 * d, d)?;
    residual.push(var(&[s.batch, s.tokens, d], 1.0)?);
    let case = |name, args, flops, fast, reference| Case { name, args, flops, fast, reference };
    Ok(vec![
        case(
            "layer_norm",
            vec![var(&[s.batch, s.tokens, d], 1.0)?, var(&[d], 1.0)?, var(&[d], 1.0)?],
            0,
            |a, _| fast::layer_norm(&a[0], &a[1], &a[2], 1e-5),
            |a, _| reference::layer_norm(&a[0], &a[1], &a[2], 1e-5),
        ),
        case(
            "linear d→3d",
            weighted(s, d, 3 * d)?,
            product(d, 3 * d),
            |a, _| fast::linear(&a[0], &a[1], &a[2]),
            |a, _| reference::linear(&a[0], &a[1], &a[2]),
        ),
        case(
            "causal_attention",
            vec![var(&[s.batch, s.tokens, 3 * d], 1.0)?],
            7 * 2 * s.batch * s.tokens * s.tokens * d,
            |a, heads| fast::causal_attention(&a[0], heads),
            |a, heads| reference::causal_attention(&a[0], heads),
        ),
        case(
            "linear_gelu d→4d",
            weighted(s, d, 4 * d)?,
            product(d, 4 * d),
            |a, _| fast::linear_gelu(&a[0], &a[1], &a[2]),
            |a, _| reference::linear_gelu(&a[0], &a[1], &a[2]),
        ),
        case(
            "linear_residual 4d→d",
            residual,
            product(4 * d, d),
            |a, _| fast::linear_residual(&a[0], &a[1], &a[2], &a[3]),
            |a, _| reference::linear_residual(&a[0], &a[1], &a[2], &a[3]),
        ),
    ])
}

/// Forward, and forward with backward. `backward` of a custom op's result seeds a gradient of ones.
fn time(case: &Case, op: Op, heads: usize) -> Result<(f64, f64)> {
    let plain: Vec<Var> = case.args.clone();
    let forward = fastest(|| op(&plain, heads).map(drop))?;
    let both = fastest(|| op(&plain, heads)?.backward().map(drop))?;
    Ok((forward.as_secs_f64() * 1e6, both.as_secs_f64() * 1e6))
}

struct Block(Vec<Var>);

impl Block {
    fn new(d: usize) -> Result<Self> {
        let s = 1.0 / (d as f32).sqrt();
        let shapes: [(&[usize], f32); 12] = [
            (&[d], 1.0),
            (&[d], 0.1),
            (&[d, 3 * d], s),
            (&[3 * d], 0.1),
            (&[d, d], s),
            (&[d], 0.1),
            (&[d], 1.0),
            (&[d], 0.1),
            (&[d, 4 * d], s),
            (&[4 * d], 0.1),
            (&[4 * d, d], s / 2.0),
            (&[d], 0.1),
        ];
        shapes.iter().map(|(shape, scale)| var(shape, *scale)).collect::<Result<_>>().map(Self)
    }

    fn forward(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let p = &self.0;
        let a = fast::layer_norm(x, &p[0], &p[1], 1e-5)?;
        let a = fast::causal_attention(&fast::linear(&a, &p[2], &p[3])?, heads)?;
        let x = fast::linear_residual(&a, &p[4], &p[5], x)?;
        let a = fast::layer_norm(&x, &p[6], &p[7], 1e-5)?;
        let a = fast::linear_gelu(&a, &p[8], &p[9])?;
        fast::linear_residual(&a, &p[10], &p[11], &x)
    }
}

/// A training step of the blocks alone: forward, backward and Adam.
fn step(s: &Shape) -> Result<()> {
    let blocks = (0..s.layers).map(|_| Block::new(s.width)).collect::<Result<Vec<_>>>()?;
    let vars: Vec<&Var> = blocks.iter().flat_map(|b| &b.0).collect();
    let moments = vars.iter().map(|v| Ok((v.zeros_like()?, v.zeros_like()?))).collect::<Result<Vec<_>>>()?;
    let x = Tensor::randn(0f32, 1.0, (s.batch, s.tokens, s.width), &Device::Cpu)?;
    let target = x.zeros_like()?;
    let adam = fast::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let (mut forward, mut backward, mut update) = (Duration::MAX, Duration::MAX, Duration::MAX);
    let (begin, cpu, mut steps) = (Instant::now(), cpu_time(), 0);
    while begin.elapsed() < Duration::from_secs(3 * s.threads as u64) {
        steps += 1;
        let start = Instant::now();
        let mut h = x.clone();
        for block in &blocks {
            h = block.forward(&h, s.heads)?;
        }
        let loss = fast::mse_at(&h, &target)?;
        forward = forward.min(start.elapsed());
        let start = Instant::now();
        let grads = loss.backward()?;
        backward = backward.min(start.elapsed());
        let start = Instant::now();
        for (var, (m, v)) in vars.iter().zip(&moments) {
            let Some(grad) = grads.get(var) else { candle_core::bail!("a gradient is missing") };
            adam.update(var, grad, m, v, 1e-4, 1, 1.0)?;
        }
        update = update.min(start.elapsed());
    }
    let total = forward + backward + update;
    let cpu = cpu.zip(cpu_time()).map(|(before, after)| (after - before) / steps);
    let cpu = cpu.map_or(String::from("unknown"), |time| format!("{time:.2?}"));
    let flops = 6.0 * (s.layers * s.batch * s.tokens * 12 * s.width * s.width) as f64;
    println!(
        "{:<11} step of {} blocks: {total:.2?} (forward {forward:.2?}, backward {backward:.2?}, Adam {update:.2?}), {:.0} GFLOP/s, \
         processor time {cpu}",
        s.name,
        s.layers,
        flops / total.as_secs_f64() / 1e9
    );
    Ok(())
}

fn run(s: &Shape, only: &str) -> Result<()> {
    println!("\n{} (batch {}, {} tokens, width {}, {} threads), µs", s.name, s.batch, s.tokens, s.width, s.threads);
    println!("{:<22}{:>10}{:>10}{:>10}{:>12}{:>10}", "", "forward", "+ backw.", "GFLOP/s", "reference", "+ backw.");
    for case in cases(s)?.iter().filter(|c| c.name.contains(only)) {
        let (f, fb) = time(case, case.fast, s.heads)?;
        let (r, rb) = time(case, case.reference, s.heads)?;
        let rate = case.flops as f64 / fb / 1e3;
        println!("{:<22}{f:>10.0}{fb:>10.0}{rate:>10.0}{r:>12.0}{rb:>10.0}", case.name);
    }
    if "product".contains(only) {
        let x = Tensor::ones((s.batch * s.tokens, s.width), DType::F32, &Device::Cpu)?;
        let w = Tensor::ones((s.width, 4 * s.width), DType::F32, &Device::Cpu)?;
        let best = fastest(|| x.matmul(&w).map(drop))?.as_secs_f64();
        let flops = (2 * s.batch * s.tokens * s.width * 4 * s.width) as f64;
        println!("candle's matmul d→4d: {:.0} µs, {:.0} GFLOP/s", best * 1e6, flops / best / 1e9);
    }
    if "step".contains(only) { step(s) } else { Ok(()) }
}

fn main() -> Result<()> {
    taskvec_kernels::process::prepare();
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    for shape in &SHAPES {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(shape.threads).build().map_err(candle_core::Error::wrap)?;
        pool.install(|| run(shape, &only))?;
    }
    Ok(())
}
