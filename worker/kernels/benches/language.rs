//! Microseconds per operation of a language model, fast against plain, at the sizes of SmolLM2-135M: a batch of
//! prompts, forward and with backward, and decoding, forward only.
//!
//! `cargo bench -p taskvec-kernels --bench language` runs all, on one thread and on two; an argument keeps only the
//! lines that contain it. For few rows weights are given in several copies, so that none waits in a cache. Processor time
//! (of all threads, a mean) tells what a call costs even while others use the machine.

mod timing;

use candle_core::{DType, Device, Result, Tensor, Var};
use std::time::Duration;
use taskvec_kernels as fast;
use taskvec_kernels::{Activation, Attend, Rotary, Span, reference};
use timing::{fastest, timed};

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

/// Arguments of these shapes and types.
type Shapes = Vec<(Vec<usize>, DType)>;

struct Case {
    name: String,
    shapes: Shapes,
    /// Sets of arguments that are used in turn.
    copies: usize,
    fast: Op,
    plain: Op,
    /// Of the forward: floating-point operations, and bytes that are read or written at least.
    flops: usize,
    bytes: usize,
    /// How many of the arguments have gradients; none: forward only.
    tracked: usize,
}

/// Numbers in [−1, 1) from a small generator, since candle's is slow.
fn random(shape: &[usize]) -> Result<Tensor> {
    let mut state = 1u32;
    let numbers = (0..shape.iter().product()).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    });
    Tensor::from_vec(numbers.collect(), shape, &Device::Cpu)
}

fn linear(rows: usize, inputs: usize, outputs: usize, dtype: DType) -> Case {
    let bytes = inputs * outputs * dtype.size_in_bytes();
    Case {
        name: format!("linear_t {rows} × {inputs} → {outputs} {}", dtype.as_str()),
        shapes: vec![(vec![rows, inputs], DType::F32), (vec![outputs, inputs], dtype)],
        copies: if rows > 64 { 1 } else { (MANY / bytes).clamp(1, 64) },
        fast: Box::new(|a| fast::linear_t(&a[0], &a[1], None)),
        plain: Box::new(|a| reference::linear_t(&a[0], &a[1].to_dtype(DType::F32)?, None)),
        flops: 2 * rows * inputs * outputs,
        bytes: bytes + 4 * rows * (inputs + outputs),
        tracked: usize::from(rows > 64),
    }
}

/// One query of each row after its keys, or whole rows.
fn attention(rows: usize, tokens: usize, decoding: bool) -> Case {
    let row = |i: usize| i * tokens..(i + 1) * tokens;
    let span = |i: usize| match decoding {
        true => Span { queries: i..i + 1, prefix: 0..0, keys: row(i) },
        false => Span::alone(row(i)),
    };
    let spans: Vec<Span> = (0..rows).map(span).collect();
    let queries = spans.last().map_or(0, |span| span.queries.end);
    let (same, seen) = (spans.clone(), if decoding { tokens } else { tokens * (tokens + 1) / 2 });
    let shapes = [[queries, HEADS, DIM], [rows * tokens, GROUPS, DIM], [rows * tokens, GROUPS, DIM]];
    Case {
        name: format!("attend {rows} rows of {tokens}{}", if decoding { ", decoding" } else { "" }),
        shapes: shapes.map(|shape| (shape.to_vec(), DType::F32)).to_vec(),
        copies: if decoding { (MANY / (8 * rows * tokens * GROUPS * DIM)).clamp(1, 32) } else { 1 },
        fast: Box::new(move |a| fast::attend(&a[0], &a[1], &a[2], &spans, &ATTEND)),
        plain: Box::new(move |a| reference::attend(&a[0], &a[1], &a[2], &same, &ATTEND)),
        flops: 4 * rows * seen * HEADS * DIM,
        bytes: 4 * DIM * (2 * queries * HEADS + 2 * rows * tokens * GROUPS),
        tracked: if decoding { 0 } else { 3 },
    }
}

/// Element by element: `passes` over the first argument in all.
fn elementwise(name: &str, shapes: &[&[usize]], passes: usize, fast: Op, plain: Op) -> Case {
    Case {
        name: format!("{name} {:?}", shapes[0]),
        shapes: shapes.iter().map(|shape| (shape.to_vec(), DType::F32)).collect(),
        copies: 1,
        fast,
        plain,
        flops: 0,
        bytes: 4 * passes * shapes[0].iter().product::<usize>(),
        tracked: shapes.len(),
    }
}

fn elementwise_cases(n: usize) -> Result<Vec<Case>> {
    let angles = random(&[n, DIM / 2])?;
    let rotary = Rotary { cos: angles.cos()?, sin: angles.sin()? };
    let same_rotary = rotary.clone();
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
        ),
        elementwise(
            "rotate",
            &[&[n, HEADS, DIM]],
            2,
            Box::new(move |a| fast::rotate(&a[0], &rotary)),
            Box::new(move |a| reference::rotate(&a[0], &same_rotary)),
        ),
        elementwise(
            "gated silu",
            &[&[n, INNER], &[n, INNER]],
            3,
            Box::new(|a| fast::gated(&a[0], &a[1], Activation::Silu)),
            Box::new(|a| reference::gated(&a[0], &a[1], Activation::Silu)),
        ),
        elementwise(
            "cross_entropy",
            &[&[classes, VOCABULARY]],
            1,
            Box::new(move |a| fast::cross_entropy(&a[0], &targets)),
            Box::new(move |a| reference::cross_entropy(&a[0], &same_targets)),
        ),
    ])
}

fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (rows, dtype) in
        [(2048, DType::F32), (2048, DType::BF16), (64, DType::F32), (8, DType::F32), (8, DType::BF16), (1, DType::F32)]
    {
        cases.push(linear(rows, WIDTH, INNER, dtype));
        cases.push(linear(rows, INNER, WIDTH, dtype));
    }
    for (rows, dtype) in [(256, DType::F32), (8, DType::F32), (8, DType::BF16), (1, DType::F32), (1, DType::BF16)] {
        cases.push(linear(rows, WIDTH, VOCABULARY, dtype));
    }
    for (rows, tokens, decoding) in
        [(32, 64, false), (8, 256, false), (1, 2048, false), (8, 256, true), (1, 2048, true)]
    {
        cases.push(attention(rows, tokens, decoding));
    }
    cases.extend(elementwise_cases(2048)?);
    Ok(cases)
}

impl Case {
    fn args(&self) -> Result<Vec<Vec<Tensor>>> {
        let arg = |(i, (shape, dtype)): (usize, &(Vec<usize>, DType))| {
            let values = random(shape)?.to_dtype(*dtype)?;
            if i < self.tracked { Ok(Var::from_tensor(&values)?.as_tensor().clone()) } else { Ok(values) }
        };
        (0..self.copies).map(|_| self.shapes.iter().enumerate().map(arg).collect()).collect()
    }

    /// A line of the table. `backward` of a custom op's result seeds a gradient of ones.
    fn run(&self) -> Result<()> {
        let args = self.args()?;
        let detached: Vec<Vec<Tensor>> = args.iter().map(|set| set.iter().map(Tensor::detach).collect()).collect();
        let (mut turn, mut plain_turn) = (detached.iter().cycle(), detached.iter().cycle());
        let (fast, cpu) = timed(|| turn.next().map_or(Ok(()), |set| (self.fast)(set).map(drop)))?;
        let plain = fastest(|| plain_turn.next().map_or(Ok(()), |set| (self.plain)(set).map(drop)))?;
        let micros = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e6);
        let both = |op: &Op| match self.tracked {
            0 => Ok(String::from("–")),
            _ => fastest(|| op(&args[0])?.backward().map(drop)).map(micros),
        };
        let rate = |amount: usize| amount as f64 / fast.as_secs_f64() / 1e9;
        println!(
            "{:<38}{:>9}{:>9}{:>9.0}{:>7.1}{:>10}{:>10}{:>10}",
            self.name,
            micros(fast),
            cpu.map(micros).unwrap_or_default(),
            rate(self.flops),
            rate(self.bytes),
            both(&self.fast)?,
            micros(plain),
            both(&self.plain)?
        );
        Ok(())
    }
}

fn main() -> Result<()> {
    fast::process::prepare();
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    for threads in [1, 2] {
        println!("\n{threads} threads, µs");
        println!(
            "{:<38}{:>9}{:>9}{:>9}{:>7}{:>10}{:>10}{:>10}",
            "", "forward", "cpu", "GFLOP/s", "GB/s", "+ backw.", "plain", "+ backw."
        );
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        for case in cases()?.iter().filter(|case| case.name.contains(&only)) {
            pool.install(|| case.run())?;
        }
    }
    Ok(())
}
