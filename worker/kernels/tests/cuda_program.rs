//! Programs: products on an emulated device, and what a builder refuses.

mod common;
#[path = "../cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

use common::numbers;
use emulator::machine::Emulated;
use std::panic::{AssertUnwindSafe, catch_unwind};
use taskvec_kernels::Precision;
use taskvec_kernels::cuda::{
    Extent, Operand, Product,
    layers::{Stacked, gelu_backward},
    program::{Buffer, Builder, Cost, Loaded, Machine, Operation, Program, Region, Source},
    training::{Bases, MixtureShape, Rings, mixture},
};

fn floats(seed: u64, n: usize) -> Vec<f32> {
    numbers(seed, n).into_iter().map(|x| x as f32).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read<L: Loaded<Error: std::fmt::Debug>>(loaded: &L, region: Region) -> Vec<f32> {
    let bytes = loaded.read(region).expect("a place");
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Rounds to that many bits of mantissa, by the rule that is in every textbook.
fn rounded(x: f32, bits: i32) -> f64 {
    let unit = 2f64.powi(f64::from(x).abs().log2().floor() as i32 - bits);
    (f64::from(x) / unit).round_ties_even() * unit
}

#[test]
fn products_of_every_orientation_are_those_of_f64() {
    if emulator::available() {
        let precisions = [(Precision::F32, 23), (Precision::Tf32, 10), (Precision::Bf16, 7)];
        products_are_those_of_f64(&Emulated::default(), &precisions);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn products_of_every_orientation_are_those_of_f64_on_a_gpu() {
    use taskvec_kernels::cuda::device::{Gpu, Launching};
    match Gpu::new(0, Launching::Graph(1)) {
        // How it rounds to fewer bits is its own affair.
        Ok(gpu) => products_are_those_of_f64(&gpu, &[(Precision::F32, 23)]),
        Err(error) => std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("\nSKIPPED: products are not computed on a GPU: {error}\n"),
        )
        .unwrap(),
    }
}

fn products_are_those_of_f64(machine: &impl Machine, precisions: &[(Precision, i32)]) {
    let sizes = [(1, 1, 1, 1), (1, 5, 1, 7), (3, 4, 6, 5), (2, 1, 9, 1), (2, 33, 2, 17)];
    let orientations = [(false, false), (false, true), (true, false), (true, true)];
    for (runs, m, n, k) in sizes {
        for &(precision, bits) in precisions {
            for (left_t, right_t) in orientations {
                // Runs lie apart, each factor behind something else.
                let strides = [m * k + 3, k * n + 1, m * n + 2];
                let values = [floats(1, 2 + runs * strides[0]), floats(2, 2 + runs * strides[1])];
                let mut builder = Builder::default();
                let places = [0, 1].map(|i| builder.floats(values[i].len()));
                let out = builder.floats(runs * strides[2]);
                let [left, right] = [0, 1].map(|i| Operand::plain(places[i].behind(2), strides[i]));
                let factors = [Operand { transposed: left_t, ..left }, Operand { transposed: right_t, ..right }];
                builder.multiply(Product::new(Extent { m, n, k, runs, precision }, factors, (out, strides[2])));
                let mut loaded = machine.load(builder.finish()).expect("a program");
                (0..2).for_each(|i| loaded.write(places[i], &bytes(&values[i])).expect("a place"));
                loaded.write(out, &bytes(&vec![f32::NAN; runs * strides[2]])).expect("a place");
                loaded.run(1).expect("products");
                let got = read(&loaded, out);
                for (run, i, j) in (0..runs).flat_map(|r| (0..m).flat_map(move |i| (0..n).map(move |j| (r, i, j)))) {
                    let factor = |which: usize, row: usize, column: usize, rows: usize, columns: usize, t: bool| {
                        let at = if t { column * rows + row } else { row * columns + column };
                        rounded(values[which][2 + run * strides[which] + at], bits)
                    };
                    let terms = (0..k).map(|l| factor(0, i, l, m, k, left_t) * factor(1, l, j, k, n, right_t));
                    let (want, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let error = (f64::from(got[run * strides[2] + i * n + j]) - want).abs();
                    let allowed = (k + 1) as f64 * f64::from(f32::EPSILON) * size;
                    assert!(error <= allowed, "{precision:?} {runs} × {m} × {n} × {k}: {error:e} of {allowed:e}");
                }
                assert!(got[m * n..m * n + 2].iter().all(|x| x.is_nan()), "what lies between is not touched");
            }
        }
    }
}

#[test]
fn operations_happen_in_their_order_and_as_often_as_asked() {
    if !emulator::available() {
        return;
    }
    let mut builder = Builder::default();
    let [x, other, sum] = [(); 3].map(|()| builder.floats(4));
    let of = Stacked { runs: 1, rows: 1, width: 4, stride: 4 };
    builder.launch(gelu_backward(of, [x, other, x]));
    builder.clear(sum.behind(2));
    let program = builder.finish();
    assert_eq!(
        program.cost(),
        Cost { launches: 1, clears: 1, kernel_bytes: 3 * 16 + 8, memory: 768, ..Cost::default() }
    );
    assert_eq!(program.plan(), (vec![0, 256, 512], 768));
    let Ok(mut loaded) = Emulated::default().load(program);
    for (place, values) in [(x, [1.0, 2.0, 3.0, 4.0]), (other, [2.0; 4]), (sum, [7.0; 4])] {
        loaded.write(place, &bytes(&values)).expect("infallible");
    }
    let Ok(()) = loaded.run(3);
    assert_eq!(read(&loaded, x), [8.0, 16.0, 24.0, 32.0]);
    assert_eq!(read(&loaded, sum), [7.0, 7.0, 0.0, 0.0]);
    assert_eq!(read(&loaded, x.behind(1).first(2)), [16.0, 24.0]);
}

const SHAPE: MixtureShape =
    MixtureShape { dim: 4, examples: 2, channels: 5, y_channel: 4, rank: 2, purpose: 1, bases: Bases::Drawn, first: 0 };

/// A program with the sequences of one run whose bases are these.
fn drawing(of: MixtureShape, bases: &[&[u32]]) -> Program {
    let mut builder = Builder::default();
    let step = builder.bytes(8);
    let (tokens, y, basis) = (builder.floats(3 * 4 * 5), builder.floats(3 * 2), builder.bytes(3 * 4));
    let bases = bases.iter().map(|basis| basis.to_vec()).collect();
    let source = Source { seed: 1, weight_mean: 0.0, noise: 0.1, bases };
    builder.mixture(3, of, &[source], [step, tokens, y, basis]);
    builder.finish()
}

/// What a panic says.
fn refusal<T>(make: impl FnOnce() -> T) -> String {
    let payload = catch_unwind(AssertUnwindSafe(make)).err().expect("it is refused");
    let plain = || payload.downcast_ref::<&str>().map(|says| (*says).to_owned());
    payload.downcast_ref::<String>().cloned().or_else(plain).expect("a panic says why")
}

#[test]
fn what_would_lead_a_kernel_astray_is_refused() {
    let astray: [(MixtureShape, &[&[u32]], &str); 6] = [
        (SHAPE, &[&[0, 1], &[2, 4]], "a coordinate is not below 4"),
        (SHAPE, &[&[0, 1], &[2]], "a basis is not of rank 2"),
        (SHAPE, &[], "0 bases"),
        (MixtureShape { bases: Bases::Fixed(1), ..SHAPE }, &[&[0, 1]], "1 bases"),
        (MixtureShape { y_channel: 5, ..SHAPE }, &[&[0, 1]], "channels are missing"),
        (MixtureShape { channels: 3, ..SHAPE }, &[&[0, 1]], "channels are missing"),
    ];
    for (of, bases, says) in astray {
        let refusal = refusal(|| drawing(of, bases));
        assert!(refusal.contains(says), "{refusal}");
    }
    let program = drawing(SHAPE, &[&[0, 1], &[2, 3]]);
    let tables = program.buffers().iter().filter(|buffer| matches!(buffer, Buffer::Table(_))).count();
    assert_eq!(tables, 2);
    // A launch whose tables nobody checked, and one that would write into a table.
    let [Operation::Launch(call)] = program.operations() else { panic!("one launch") };
    let places: Vec<Region> = call.buffers().map(|(region, _)| *region).collect();
    let says = refusal(|| {
        let mut builder = Builder::default();
        let all = [(); 6].map(|()| builder.floats(100));
        builder.launch(mixture((1, 3, 4), SHAPE, all));
    });
    assert!(says.contains("goes by tables that nobody checked"), "{says}");
    assert!(places.iter().filter(|&&region| !program.is_writable(region)).count() == 2, "tables are not written");
}

#[test]
fn what_is_of_another_program_or_too_small_is_refused() {
    let mut other = Builder::default();
    let foreign = [(); 3].map(|()| other.floats(64));
    let mut builder = Builder::default();
    let small = builder.floats(16);
    let of = Stacked { runs: 1, rows: 2, width: 8, stride: 8 };
    builder.launch(gelu_backward(of, [small; 3]));
    for region in [foreign[0], foreign[2]] {
        let says = refusal(|| builder.launch(gelu_backward(of, [small, small, region])));
        assert!(says.contains("is no place for 64 bytes"), "{says}");
    }
    let says = refusal(|| builder.clear(foreign[1]));
    assert!(says.contains("is no place for"), "{says}");
    // A call that was made for more memory, by whatever way it comes to less.
    let call = gelu_backward(of, [small; 3]).map(|region| region.first(4));
    let says = refusal(|| builder.launch(call));
    assert!(says.contains("is no place for 64 bytes"), "{says}");
    let extent = Extent { m: 2, n: 2, k: 2, runs: 2, precision: Precision::F32 };
    let [a, b] = [small, small.behind(8)].map(|place| Operand::plain(place, 4));
    let says = refusal(|| builder.multiply(Product::new(extent, [a, b], (small.behind(4), 4))));
    assert!(says.contains("overwrites a factor"), "{says}");
    for (stride, place) in [(3, small), (4, small.first(7))] {
        assert!(!refusal(|| Product::new(extent, [a, b], (place, stride))).is_empty());
    }
    let says = refusal(|| Rings { runs: 2, slots: 9 }.mse(1, [small; 5]));
    assert!(says.contains("mse"), "{says}");
}
