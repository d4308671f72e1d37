//! f32 in fewer bits, by CUDA kernels executed on the CPU: the very bits of the crate `half` and of arithmetic in f64.

#[path = "../cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

use emulator::Memory;
use taskvec_kernels::cuda::rounding::Rounded;

/// Every `step`th of the numbers that so many bits can tell apart, and between two of them what is exact, below, at and
/// above the middle: subnormal numbers and NaN of both signs among them.
fn every_kind(kept: u32, step: usize) -> Vec<f32> {
    let unit = 1u32 << (32 - kept);
    let behind = [0, 1, unit / 2 - 1, unit / 2, unit / 2 + 1, unit - 1];
    let upper = (0..1u32 << kept).step_by(step);
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::NAN];
    let kinds = upper.flat_map(|bits| behind.map(|rest| f32::from_bits(bits << (32 - kept) | rest)));
    kinds.chain(special).collect()
}

/// What the input is afterwards, and the bytes of the output, of which those between runs are all ones before.
fn run(of: Rounded, values: &[f32], tf32: bool) -> (Vec<f32>, Vec<u8>) {
    let mut memory = Memory::default();
    let from = memory.floats(values);
    let bytes = ((of.runs - 1) * of.strides[1] + of.count) * if tf32 { 4 } else { 2 };
    let to = memory.unwritten(bytes);
    memory.run(&if tf32 { of.to_tf32([from, to]) } else { of.to_bf16([from, to]) });
    (memory.read_floats(from), memory.read(to).to_vec())
}

#[test]
fn bf16_has_the_bits_that_half_gives() {
    if !emulator::available() {
        return;
    }
    let values = every_kind(16, 1);
    let of = Rounded { runs: 1, count: values.len(), strides: [0, 0] };
    let (_, out) = run(of, &values, false);
    for (x, got) in values.iter().zip(out.as_chunks().0) {
        let (got, want) = (u16::from_le_bytes(*got), half::bf16::from_f32(*x).to_bits());
        assert_eq!(got, want, "{x:e} ({:08x}) becomes {got:04x}, not {want:04x}", x.to_bits());
    }
}

/// Rounded to 10 bits of mantissa by arithmetic in f64, which is exact.
fn tf32(x: f32) -> f32 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = (f64::from(x).to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let unit = 2f64.powi(exponent.max(-126) - 10);
    ((f64::from(x) / unit).round_ties_even() * unit) as f32
}

#[test]
fn tf32_is_rounded_to_the_nearest_even() {
    if !emulator::available() {
        return;
    }
    let values = every_kind(19, 11);
    let of = Rounded { runs: 1, count: values.len(), strides: [0, 0] };
    let (_, out) = run(of, &values, true);
    for (x, got) in values.iter().zip(out.as_chunks().0) {
        let (got, want) = (f32::from_le_bytes(*got), tf32(*x));
        assert!(got.to_bits() == want.to_bits() || got.is_nan() && x.is_nan(), "{x:e} becomes {got:e}, not {want:e}");
        assert_eq!(got.to_bits() & 0x1fff, 0, "{x:e} keeps bits that TF32 has not");
    }
}

#[test]
fn runs_lie_apart_and_nothing_between_them_is_touched() {
    if !emulator::available() {
        return;
    }
    for (runs, count, strides) in [(1, 1, [1, 1]), (3, 5, [5, 7]), (2, 300, [301, 300])] {
        let of = Rounded { runs, count, strides };
        let values: Vec<f32> = (0..(runs - 1) * strides[0] + count).map(|i| 1.0 + i as f32 / 777.0).collect();
        let within = |i: usize| (i % strides[1] < count).then(|| values[i / strides[1] * strides[0] + i % strides[1]]);
        let (from, out) = run(of, &values, false);
        assert_eq!(from, values);
        for (i, got) in out.as_chunks().0.iter().enumerate() {
            let want = within(i).map_or(0xffff, |x| half::bf16::from_f32(x).to_bits());
            assert_eq!(u16::from_le_bytes(*got), want, "element {i} of {of:?}");
        }
        for (i, got) in run(of, &values, true).1.as_chunks().0.iter().enumerate() {
            let want = within(i).map_or(u32::MAX, |x| tf32(x).to_bits());
            assert_eq!(u32::from_le_bytes(*got), want, "element {i} of {of:?}");
        }
    }
    let mut memory = Memory::default();
    let values = [1.0f32, 1.0 + 1.0 / 4096.0, f32::NAN, f32::INFINITY, -1e-40];
    let place = memory.floats(&values);
    memory.run(&Rounded { runs: 1, count: values.len(), strides: [0, 0] }.to_tf32([place, place]));
    let same = |(got, x): (&f32, &f32)| got.to_bits() == tf32(*x).to_bits() || got.is_nan() && x.is_nan();
    assert!(memory.read_floats(place).iter().zip(&values).all(same), "in place");
}
