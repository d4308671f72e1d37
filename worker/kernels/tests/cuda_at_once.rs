//! CUDA kernels that do at once what others do one after the other, executed on the CPU: norms of a sum, and many sums. Their
//! bytes are the same.

mod common;
#[path = "../cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

use common::numbers;
use emulator::Memory;
use taskvec_kernels::cuda::layers::*;

const EPS: f64 = 1e-5;

/// Where the sum goes.
#[derive(Clone, Copy, Debug)]
enum Into {
    Another,
    X,
    Residual,
}

fn floats(seed: u64, n: usize) -> Vec<f32> {
    numbers(seed, n).into_iter().map(|x| x as f32).collect()
}

/// The sum and its layer norm, the sum and its RMS norm: by kernels that do both, or by one kernel after the other.
fn results(of: Stacked, with_bias: bool, into: Into, at_once: bool) -> Vec<Vec<u32>> {
    let mut memory = Memory::default();
    let len = of.runs * of.rows * of.width;
    let parameters = memory.floats(&floats(3, of.runs * of.stride));
    let [added, weight, bias] = [0, 1, 2].map(|i| parameters.behind(i * of.width));
    let (added, nothing) = (with_bias.then_some(added), memory.floats(&vec![0.0; of.runs * of.stride]));
    let mut out = Vec::new();
    for rms in [false, true] {
        let ([x, residual], norm) = ([1, 2].map(|seed| memory.floats(&floats(seed, len))), memory.room(len));
        let sum = match into {
            Into::Another => memory.room(len),
            Into::X => x,
            Into::Residual => residual,
        };
        let inputs = [x, residual, sum];
        match (at_once, rms) {
            (true, false) => memory.run(&layer_norm_residual(of, EPS, inputs, added, [weight, bias, norm])),
            (true, true) => memory.run(&rms_norm_residual(of, EPS, inputs, added, [weight, norm])),
            (false, _) => {
                memory.run(&bias_residual(of, [x, added.unwrap_or(nothing), sum], Some(residual)));
                memory.run(&if rms {
                    rms_norm(of, EPS, [sum, weight, norm])
                } else {
                    layer_norm(of, EPS, [sum, weight, bias, norm])
                });
            }
        }
        out.extend([sum, norm].map(|place| memory.read_floats(place).into_iter().map(f32::to_bits).collect()));
    }
    out
}

#[test]
fn the_norm_of_a_sum_is_the_sum_and_then_the_norm() {
    if !emulator::available() {
        return;
    }
    for (runs, rows, width) in [(1, 1, 1), (1, 1, 5), (3, 6, 16), (2, 13, 37), (1, 9, 300)] {
        let of = Stacked { runs, rows, width, stride: 3 * width + 2 };
        for (with_bias, into) in
            [(true, Into::Another), (false, Into::Another), (true, Into::X), (true, Into::Residual)]
        {
            let [got, want] = [true, false].map(|at_once| results(of, with_bias, into, at_once));
            assert_eq!(got, want, "{of:?}, bias: {with_bias}, sum into {into:?}");
        }
    }
}

#[test]
fn many_partial_sums_are_summed_at_once_as_one_by_one() {
    if !emulator::available() {
        return;
    }
    let shapes = [(33, 5), (1, 1), (70, 300), (64, 2)];
    for runs in [1, 3] {
        let mut memory = Memory::default();
        let of = |(rows, width): (usize, usize)| Stacked { runs, rows, width, stride: 700 };
        let all: usize = shapes.iter().map(|&shape| runs * of(shape).parts() * shape.1).sum();
        let partials = memory.floats(&floats(1, all));
        let [together, alone] = [(); 2].map(|()| memory.floats(&vec![f32::NAN; runs * 700]));
        let (mut sums, mut from, mut to) = (Vec::new(), 0, 3);
        for shape in shapes {
            let (parts, width) = (of(shape).parts(), shape.1);
            memory.run(&sum_partials(of(shape), partials.behind(from), (alone.behind(to), width), None));
            // The columns of some in two halves, as weights and biases of norms are.
            for columns in [0..width / 2, width / 2..width].into_iter().filter(|columns| !columns.is_empty()) {
                let (from, to) = (from + columns.start, to + columns.start);
                sums.push(Sum { width: columns.len(), parts, pitch: width, from, to });
            }
            (from, to) = (from + runs * parts * width, to + width + 7);
        }
        let table = memory.words(&Sum::table(&sums));
        memory.run(&sum_all((runs, 700), &sums, [partials, table, together]));
        assert_eq!(memory.read(together), memory.read(alone), "{runs} runs");
    }
}
