//! The layers' CUDA kernels, executed on the CPU, against the plain operations in f64 and against each other: several runs
//! stacked against each alone, and threads in several orders.

mod common;
#[path = "../cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

use candle_core::{DType, Result, Tensor, Var};
use common::numbers;
use emulator::{Memory, Place};
use taskvec_kernels::{
    Activation,
    cuda::{
        analysis::Patch,
        attention::Attention,
        language::{Gates, NORM, Targets, Turned, rotate},
        layers::*,
    },
    reference,
};

/// As in the tests of the other versions.
const TOLERANCE: f64 = 2e-5;
const EPS: f64 = 1e-5;

/// An input: a shape, and the numbers in it.
#[derive(Clone)]
struct Input {
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn input(seed: u64, shape: &[usize], scale: f64) -> Input {
    let values = numbers(seed, shape.iter().product()).into_iter().map(|x| (x * scale) as f32).collect();
    Input { shape: shape.to_vec(), values }
}

/// What the plain operation gives in f64, and the gradients by all inputs of its sum weighted by `grad`.
fn plain(
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[&Input],
    grad: &Input,
) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let tensor = |input: &Input| {
        Tensor::from_slice(&input.values, input.shape.as_slice(), &candle_core::Device::Cpu)?.to_dtype(DType::F64)
    };
    let vars = inputs.iter().map(|input| Var::from_tensor(&tensor(input)?)).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = op(&tensors)?;
    let grads = (&out * tensor(grad)?.reshape(out.shape())?)?.sum_all()?.backward()?;
    let of = |var: &Var| grads.get(var).map(common::values).transpose().map(Option::unwrap_or_default);
    Ok((common::values(&out)?, vars.iter().map(of).collect::<Result<_>>()?))
}

/// Largest difference, against the largest magnitude. NaN must meet NaN.
fn assert_close(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().filter(|w| w.is_finite()).fold(1e-3, |a: f64, b| a.max(b.abs()));
    let mut worst = 0.0f64;
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / scale;
        assert!(error <= TOLERANCE || (w.is_nan() && g.is_nan()), "{what}: element {i} is {g}, not {w}");
        worst = worst.max(error);
    }
    println!("{what}: largest error {worst:.1e}");
}

/// Shapes of S runs: multiples of nothing, one row, one element, more rows than a partial sum has.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (1, 1, 5), (3, 6, 16), (2, 13, 37), (1, 33, 64), (2, 70, 72), (1, 9, 300)];

/// The runs of a shape, then each alone.
fn stacked(runs: usize) -> Vec<std::ops::Range<usize>> {
    std::iter::once(0..runs).chain((0..runs).map(|run| run..run + 1)).collect()
}

/// What `make` gives for all runs together is, run for run, what it gives for each alone, byte for byte.
fn assert_stacked_as_alone(
    what: &str,
    runs: usize,
    make: impl Fn(std::ops::Range<usize>) -> Vec<Vec<f32>>,
) -> Vec<Vec<f32>> {
    let mut all = stacked(runs).into_iter().map(make);
    let together = all.next().expect("the whole");
    for (run, alone) in all.enumerate() {
        for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
            let part = &together[run * alone.len()..(run + 1) * alone.len()];
            let same = part.iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{what}: result {i} of run {run} is not that of the run alone");
        }
    }
    together
}

/// The part of an input that belongs to some of `runs`.
fn of_runs(x: &[f32], runs: usize, part: &std::ops::Range<usize>) -> Vec<f32> {
    let each = x.len() / runs;
    x[part.start * each..part.end * each].to_vec()
}

/// A flat buffer of each run's parameters with something between them, and how far apart they lie.
fn apart(memory: &mut Memory, parameter: &[f32], runs: usize) -> (Place, usize) {
    let each = parameter.len() / runs;
    let stride = each + 3;
    let mut flat = vec![f32::NAN; (runs - 1) * stride + each];
    for (run, values) in parameter.chunks_exact(each).enumerate() {
        flat[run * stride..run * stride + each].copy_from_slice(values);
    }
    (memory.floats(&flat), stride)
}

/// Reads such parameters.
fn together(memory: &Memory, place: Place, each: usize, stride: usize) -> Vec<f32> {
    memory.read_floats(place).chunks(stride).flat_map(|run| run[..each].to_vec()).collect()
}

/// The backward that also sums its result does what the one without does, and what [`column_sums`] does.
fn sums_beside(memory: &mut Memory, of: Stacked, [x, weight, grad, own_dx]: [Place; 4], [dx, partials]: [Place; 2]) {
    let parts = of.runs * of.parts();
    let (own, sums) = (memory.room(3 * parts * of.width), memory.room(parts * of.width));
    memory.run(&layer_norm_backward_sums(of, EPS, [x, weight, grad, own_dx, own]));
    memory.run(&column_sums(of, [dx, sums]));
    assert_eq!(memory.read(own_dx), memory.read(dx), "{of:?}");
    let [own, partials, sums] = [own, partials, sums].map(|place| memory.read_floats(place));
    let both = partials.chunks(2 * of.width).zip(sums.chunks(of.width));
    let expected: Vec<f32> = both.flat_map(|(partials, sums)| [partials, sums].concat()).collect();
    assert_eq!(own, expected, "{of:?}");
}

/// A norm: its forward, its backward, and the gradients of its parameters.
fn norm(
    what: &str,
    (runs, rows, d): (usize, usize, usize),
    scale: f64,
    with_bias: bool,
    op: fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let (x, grad, before) =
        (input(1, &[runs, rows, d], scale), input(2, &[runs, rows, d], 1.0), input(3, &[runs, rows, d], 1.0));
    let (weight, bias) = (input(4, &[runs, d], 1.0), input(5, &[runs, d], 1.0));
    let what = format!("{what} of {runs} × {rows} × {d} at {scale:e}");
    let got = assert_stacked_as_alone(&what, runs, |part| {
        let mut memory = Memory::default();
        let s = part.len();
        let of = |memory: &mut Memory, x: &Input| memory.floats(&of_runs(&x.values, runs, &part));
        let (x, grad, dx) = (of(&mut memory, &x), of(&mut memory, &grad), of(&mut memory, &before));
        let (weight, stride) = apart(&mut memory, &of_runs(&weight.values, runs, &part), s);
        let (bias, _) = apart(&mut memory, &of_runs(&bias.values, runs, &part), s);
        let shape = Stacked { runs: s, rows, width: d, stride };
        let (out, width) = (memory.room(s * rows * d), if with_bias { 2 * d } else { d });
        let partials = memory.room(s * shape.parts() * width);
        let [dweight, dbias] = [(); 2].map(|()| memory.room((s - 1) * stride + d));
        if with_bias {
            memory.run(&layer_norm(shape, EPS, [x, weight, bias, out]));
            let own_dx = of(&mut memory, &before);
            memory.run(&layer_norm_backward(shape, EPS, [x, weight, grad, dx, partials]));
            sums_beside(&mut memory, shape, [x, weight, grad, own_dx], [dx, partials]);
        } else {
            memory.run(&rms_norm(shape, EPS, [x, weight, out]));
            memory.run(&rms_norm_backward(shape, EPS, [x, weight, grad, dx, partials]));
        }
        memory.run(&sum_partials(shape, partials, (dweight, d), with_bias.then_some((dbias, d))));
        let [dweight, dbias] = [dweight, dbias].map(|p| together(&memory, p, d, stride));
        vec![memory.read_floats(out), memory.read_floats(dx), dweight, dbias]
    });
    let (out, grads) = plain(op, &[&x, &weight, &bias], &grad)?;
    assert_close(&format!("{what}: output"), &got[0], &out);
    let dx: Vec<f64> = grads[0].iter().zip(&before.values).map(|(g, b)| g + f64::from(*b)).collect();
    assert_close(&format!("{what}: gradient by x"), &got[1], &dx);
    assert_close(&format!("{what}: gradient by weight"), &got[2], &grads[1]);
    if with_bias {
        assert_close(&format!("{what}: gradient by bias"), &got[3], &grads[2]);
    }
    Ok(())
}

/// Broadcasts parameters (S, d) over (S, rows, d).
fn per_row(parameter: &Tensor) -> Result<Tensor> {
    parameter.unsqueeze(1)
}

#[test]
fn norms_agree_with_the_reference() -> Result<()> {
    if !emulator::available() {
        return Ok(());
    }
    // The plain norms have one weight for all rows: here each run has its own.
    let layer: fn(&[Tensor]) -> Result<Tensor> = |a| {
        let d = a[1].dim(1)?;
        let (one, zero) = (Tensor::ones(d, DType::F64, a[0].device())?, Tensor::zeros(d, DType::F64, a[0].device())?);
        let normal = reference::layer_norm(&a[0], &one, &zero, EPS)?;
        normal.broadcast_mul(&per_row(&a[1])?)?.broadcast_add(&per_row(&a[2])?)
    };
    let rms: fn(&[Tensor]) -> Result<Tensor> = |a| {
        let one = Tensor::ones(a[1].dim(1)?, DType::F64, a[0].device())?;
        reference::rms_norm(&a[0], &one, EPS)?.broadcast_mul(&per_row(&a[1])?)
    };
    for shape in SHAPES {
        for scale in [1.0, 1e-3, 1e4] {
            norm("layer norm", shape, scale, true, layer)?;
            norm("RMS norm", shape, scale, false, rms)?;
        }
    }
    Ok(())
}

#[test]
fn what_follows_a_product_agrees_with_the_reference() -> Result<()> {
    if !emulator::available() {
        return Ok(());
    }
    for (runs, rows, d) in SHAPES {
        for scale in [1.0, 12.0, 1e30] {
            let (x, bias) = (input(1, &[runs, rows, d], scale), input(2, &[runs, d], 1.0));
            let (residual, grad) = (input(3, &[runs, rows, d], scale), input(4, &[runs, rows, d], 1.0));
            let what = format!("{runs} × {rows} × {d} at {scale:e}");
            let got = assert_stacked_as_alone(&what, runs, |part| {
                let mut memory = Memory::default();
                let s = part.len();
                let of = |memory: &mut Memory, x: &Input| memory.floats(&of_runs(&x.values, runs, &part));
                let (x, residual, grad) = (of(&mut memory, &x), of(&mut memory, &residual), of(&mut memory, &grad));
                let (bias, stride) = apart(&mut memory, &of_runs(&bias.values, runs, &part), s);
                let shape = Stacked { runs: s, rows, width: d, stride };
                let [active, slope, plain, sum, partials] =
                    [rows, rows, rows, rows, shape.parts()].map(|rows| memory.room(s * rows * d));
                let dbias = memory.room((s - 1) * stride + d);
                memory.run(&bias_gelu(shape, [x, bias, active], Some(slope)));
                memory.run(&bias_residual(shape, [x, bias, plain], None));
                memory.run(&bias_residual(shape, [x, bias, sum], Some(residual)));
                // In place, and without a slope.
                memory.run(&bias_gelu(shape, [x, bias, x], None));
                let (own, own_partials) = (memory.room(s * rows * d), memory.room(s * shape.parts() * d));
                memory.run(&gelu_backward_sums(shape, [grad, slope, own, own_partials]));
                memory.run(&gelu_backward(shape, [grad, slope, grad]));
                memory.run(&column_sums(shape, [grad, partials]));
                assert_eq!(memory.read(own), memory.read(grad), "{what}: with sums");
                let parts = memory.read_floats(partials)[..s * shape.parts() * d].to_vec();
                assert_eq!(memory.read_floats(own_partials), parts, "{what}: sums");
                memory.run(&sum_partials(shape, partials, (dbias, d), None));
                assert_eq!(memory.read(x), memory.read(active), "{what}: in place");
                let dbias = together(&memory, dbias, d, stride);
                let floats = [active, grad, plain, sum].map(|place| memory.read_floats(place));
                floats.into_iter().chain([dbias]).collect()
            });
            let (plain_out, _) = plain(|a| a[0].broadcast_add(&per_row(&a[1])?), &[&x, &bias], &grad)?;
            assert_close(&format!("bias of {what}"), &got[2], &plain_out);
            let op = |a: &[Tensor]| a[0].broadcast_add(&per_row(&a[1])?)? + &a[2];
            let (out, _) = plain(op, &[&x, &bias, &residual], &grad)?;
            assert_close(&format!("bias and residual of {what}"), &got[3], &out);
            if scale < 1e20 {
                let (out, grads) =
                    plain(|a| reference::gelu(&a[0].broadcast_add(&per_row(&a[1])?)?), &[&x, &bias], &grad)?;
                assert_close(&format!("GELU of {what}"), &got[0], &out);
                assert_close(&format!("GELU of {what}: gradient by x"), &got[1], &grads[0]);
                assert_close(&format!("GELU of {what}: gradient by bias"), &got[4], &grads[1]);
            }
            assert!(got.iter().flatten().all(|x| x.is_finite()), "{what}");
        }
    }
    Ok(())
}

#[test]
fn positions_are_added_gathered_and_scattered() {
    if !emulator::available() {
        return;
    }
    for (runs, sequences, tokens, d) in [(1, 1, 2, 1), (2, 3, 4, 7), (3, 2, 10, 33)] {
        let rows = sequences * tokens;
        let mut memory = Memory::default();
        let stride = tokens * d + d + 1;
        let flat = input(1, &[runs * stride], 1.0).values;
        let (x, place) = (input(2, &[runs, rows, d], 1.0).values, memory.floats(&flat));
        let (from, out) = (memory.floats(&x), memory.room(x.len()));
        let [half, whole] = [x.len() / 2, x.len()].map(|len| memory.room(len));
        let shape = Stacked { runs, rows, width: d, stride };
        // The bias lies behind the positions.
        memory.run(&bias_positions(shape, tokens, [from, place.behind(tokens * d), place, out]));
        memory.run(&gather_even(runs * rows / 2, d, [from, half]));
        memory.run(&scatter_even(runs * rows / 2, d, [half, whole]));
        for (i, got) in memory.read_floats(out).into_iter().enumerate() {
            let (run, row, c) = (i / (rows * d), i / d % rows, i % d);
            let want = x[i] + flat[run * stride + tokens * d + c] + flat[run * stride + row % tokens * d + c];
            assert_eq!(got, want, "element {i}");
        }
        for (i, got) in memory.read_floats(whole).into_iter().enumerate() {
            assert_eq!(got, if i / d % 2 == 0 { x[i] } else { 0.0 }, "element {i}");
        }
        let even: Vec<f32> = x.chunks(2 * d).flat_map(|pair| pair[..d].to_vec()).collect();
        assert_eq!(memory.read_floats(half), even);
        for first in [0, tokens / 2, tokens - 1] {
            let sequences = runs * rows / tokens;
            let one = memory.room(sequences * d);
            memory.run(&gather_every(sequences, d, (first, tokens), [from, one]));
            let want: Vec<f32> = x.chunks(tokens * d).flat_map(|all| all[first * d..][..d].to_vec()).collect();
            assert_eq!(memory.read_floats(one), want, "token {first} of {tokens}");
        }
        for (first, count, add) in [(0, tokens / 2, true), (1, tokens / 2, false), (tokens - 1, 1, true), (0, 0, false)]
        {
            let sequences = runs * rows / tokens;
            memory.run(&Patch { sequences, tokens, width: d, first, count, add }.call([from, place, out]));
            for (i, got) in memory.read_floats(out).into_iter().enumerate() {
                let (token, move_) = (i / d % tokens, flat[i % (tokens * d)]);
                let patched = (0..count).any(|j| token == first + 2 * j);
                let want = if !patched {
                    x[i]
                } else if add {
                    x[i] + move_
                } else {
                    move_
                };
                assert_eq!(got, want, "element {i}: {count} from token {first} on");
            }
        }
    }
}

#[test]
fn attention_agrees_with_the_reference_whatever_fits_a_block() -> Result<()> {
    if !emulator::available() {
        return Ok(());
    }
    const H100: usize = 232_448;
    for (sequences, tokens, d, heads, shared) in [
        (1, 1, 1, 1, H100),
        (2, 1, 6, 3, H100),
        (1, 2, 8, 8, H100),
        (3, 9, 10, 2, H100),
        (5, 16, 64, 4, H100),
        (1, 40, 32, 1, H100),
        // Three queries at a time, and one.
        (2, 17, 20, 1, 2 * 4 * (17 * 21 + 3 * 37)),
        (2, 17, 20, 1, 4 * (17 * 21 + 2 * 37)),
        (1, 80, 15, 5, 12_000),
        (1, 256, 128, 1, H100),
    ] {
        for scale in [1.0, 4.0] {
            let (qkv, grad) = (input(1, &[sequences, tokens, 3 * d], scale), input(2, &[sequences, tokens, d], 1.0));
            let what = format!("attention of {sequences} × {tokens} × {d}, {heads} heads in {shared} bytes at {scale}");
            let got = assert_stacked_as_alone(&what, sequences, |part| {
                let mut memory = Memory::default();
                let of = |memory: &mut Memory, x: &Input| memory.floats(&of_runs(&x.values, sequences, &part));
                let (qkv, grad) = (of(&mut memory, &qkv), of(&mut memory, &grad));
                let shape = Attention { sequences: part.len(), tokens, width: d, heads, shared };
                let [out, dqkv] = [1, 3].map(|times| memory.room(times * part.len() * tokens * d));
                memory.run(&shape.forward([qkv, out]));
                memory.run(&shape.backward([qkv, grad, dqkv]));
                vec![memory.read_floats(out), memory.read_floats(dqkv)]
            });
            let (out, grads) = plain(|a| reference::causal_attention(&a[0], heads), &[&qkv], &grad)?;
            assert_close(&what, &got[0], &out);
            assert_close(&format!("{what}: gradient"), &got[1], &grads[0]);
        }
    }
    Ok(())
}

#[test]
fn rotations_and_gates_agree_with_the_reference() -> Result<()> {
    if !emulator::available() {
        return Ok(());
    }
    for (tokens, heads, dim, pairs) in [(1, 1, 2, 1), (3, 2, 6, 2), (5, 3, 32, 16), (20, 1, 7, 3), (2, 2, 5, 0)] {
        let (x, grad) = (input(1, &[tokens, heads, dim], 1.0), input(2, &[tokens, heads, dim], 1.0));
        let (cos, sin) = (input(3, &[tokens, pairs], 1.0), input(4, &[tokens, pairs], 1.0));
        let mut memory = Memory::default();
        let [x0, grad0, cos0, sin0] = [&x, &grad, &cos, &sin].map(|input| memory.floats(&input.values));
        let [out, dx] = [(); 2].map(|()| memory.room(tokens * heads * dim));
        let of = Turned { tokens, heads, dim, pairs };
        memory.run(&rotate(of, false, [x0, cos0, sin0, out]));
        memory.run(&rotate(of, true, [grad0, cos0, sin0, dx]));
        let op = |a: &[Tensor]| {
            reference::rotate(&a[0], &taskvec_kernels::Rotary { cos: a[1].detach(), sin: a[2].detach() })
        };
        let (want, grads) = plain(op, &[&x, &cos, &sin], &grad)?;
        assert_close(&format!("rotation {of:?}"), &memory.read_floats(out), &want);
        assert_close(&format!("rotation {of:?}: gradient"), &memory.read_floats(dx), &grads[0]);
    }
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for (rows, width) in [(1, 1), (3, 17), (4, 300)] {
            for scale in [1.0, 20.0, 80.0] {
                gate(activation, rows, width, scale)?;
            }
        }
    }
    Ok(())
}

/// Gate and up as the halves of one matrix.
fn gate(activation: Activation, rows: usize, width: usize, scale: f64) -> Result<()> {
    let (both, grad) = (input(1, &[rows, 2 * width], scale), input(2, &[rows, width], 1.0));
    let mut memory = Memory::default();
    let (gate, grad0) = (memory.floats(&both.values), memory.floats(&grad.values));
    let up = gate.behind(width);
    let [out, dgate, dup, alone] = [(); 4].map(|()| memory.room(rows * width));
    let of = Gates { activation, rows, width, strides: [2 * width; 2] };
    memory.run(&of.forward([gate, up, out]));
    memory.run(&of.backward([gate, up, grad0], [Some(dgate), Some(dup)]));
    memory.run(&of.backward([gate, up, grad0], [None, Some(alone)]));
    assert_eq!(memory.read(dup), memory.read(alone));
    let op = |a: &[Tensor]| reference::gated(&a[0].narrow(1, 0, width)?, &a[0].narrow(1, width, width)?, activation);
    let (want, grads) = plain(op, &[&both], &grad)?;
    let what = format!("{activation:?} of {rows} × {width} at {scale}");
    assert_close(&what, &memory.read_floats(out), &want);
    let column = |half: usize| -> Vec<f64> {
        grads[0].chunks(2 * width).flat_map(|row| row[half * width..][..width].to_vec()).collect()
    };
    assert_close(&format!("{what}: gradient by gate"), &memory.read_floats(dgate), &column(0));
    assert_close(&format!("{what}: gradient by up"), &memory.read_floats(dup), &column(1));
    Ok(())
}

#[test]
fn cross_entropy_agrees_with_the_reference() -> Result<()> {
    if !emulator::available() {
        return Ok(());
    }
    for (runs, each, rows, classes) in [(1, 1, 1, 1), (1, 3, 5, 5), (3, 2, 9, 40), (2, 2, 4, 1500)] {
        for scale in [1.0, 60.0] {
            let n = runs * each;
            let logits = input(1, &[rows, classes], scale);
            let positions: Vec<u32> = (0..n).map(|i| ((i * 5 + 1) % rows) as u32).collect();
            let targets: Vec<u32> = (0..n).map(|i| (i * 7 % classes) as u32).collect();
            let mut memory = Memory::default();
            let inputs = [memory.floats(&logits.values), memory.words(&positions), memory.words(&targets)];
            let (losses, norms) = (memory.unwritten(8 * n), memory.unwritten(NORM * n));
            let (mean, slopes) = (memory.unwritten(8 * runs), memory.room(n * classes));
            let of = Targets { rows, classes, targets: n };
            memory.run(&of.forward(inputs, [losses, norms]));
            memory.run(&of.mean(runs, [losses, mean]));
            memory.run(&of.backward(inputs, 1.0 / n as f64, [norms, slopes]));
            let chosen: Vec<f32> =
                positions.iter().flat_map(|&p| logits.values[p as usize * classes..][..classes].to_vec()).collect();
            let chosen = Input { shape: vec![n, classes], values: chosen };
            let one = Input { shape: vec![], values: vec![1.0] };
            let (want, grads) = plain(|a| reference::cross_entropy(&a[0], &targets), &[&chosen], &one)?;
            let means = memory.read_doubles(mean);
            let what = format!("cross-entropy of {n} of {rows} × {classes} at {scale}");
            assert_close(&what, &[(means.iter().sum::<f64>() / runs as f64) as f32], &want);
            assert_close(&format!("{what}: gradient"), &memory.read_floats(slopes), &grads[0]);
        }
    }
    Ok(())
}
