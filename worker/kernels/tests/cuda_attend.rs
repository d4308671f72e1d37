//! Attention with grouped queries as CUDA kernels, executed on the CPU, against the CPU's own version and the plain one.

mod common;
#[path = "../cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::language::{alone, behind, cached, decoding};
use emulator::Memory;
use taskvec_kernels::{
    self as fast, Attend, Span,
    cuda::attend::{Grouped, Plan},
    reference,
};

const H100: usize = 232_448;
/// Of the plain version, as in the tests of the others.
const TOLERANCE: f64 = 2e-5;

struct Case {
    name: &'static str,
    /// Heads, groups, elements of a head.
    sizes: (usize, usize, usize),
    spans: Vec<Span>,
    softcap: Option<f64>,
    window: Option<usize>,
    shared: usize,
    /// Elements between tokens.
    gap: usize,
}

impl Case {
    fn new(name: &'static str, sizes: (usize, usize, usize), spans: Vec<Span>) -> Self {
        Self { name, sizes, spans, softcap: None, window: None, shared: H100, gap: 0 }
    }

    fn how(&self) -> Attend {
        let scale = 1.5 / (self.sizes.2 as f64).sqrt();
        Attend { scale, softcap: self.softcap, window: self.window }
    }

    fn queries(&self) -> usize {
        self.spans.last().map_or(0, |span| span.queries.end)
    }

    /// Two more than any row looks at.
    fn keys(&self) -> usize {
        self.spans.iter().flat_map(|span| [span.prefix.end, span.keys.end]).max().unwrap_or(0) + 2
    }

    /// Shapes of q, k and v.
    fn shapes(&self) -> [[usize; 3]; 3] {
        let (heads, groups, dim) = self.sizes;
        [[self.queries(), heads, dim], [self.keys(), groups, dim], [self.keys(), groups, dim]]
    }

    /// q, k, v and the gradient by the output, in f32.
    fn inputs(&self) -> Result<[Tensor; 4]> {
        let [q, k, v] = self.shapes();
        let [q, k, v, grad] =
            [(1, q), (2, k), (3, v), (99, q)].map(|(seed, shape)| common::tensor(seed, &shape, DType::F32));
        Ok([q?, k?, v?, grad?])
    }

    /// Output and gradients by the kernels.
    fn emulated(&self, inputs: &[Tensor; 4]) -> Result<[Vec<f32>; 4]> {
        let (heads, groups, dim) = self.sizes;
        let strides = [heads, groups, groups].map(|n| n * dim + self.gap);
        let (queries, keys) = (self.queries(), self.keys());
        let of = Grouped { queries, keys, heads, groups, dim, strides, how: self.how(), shared: self.shared };
        let plan = Plan::new(of, &self.spans)?;
        let mut memory = Memory::default();
        let [q, k, v] = [0, 1, 2].map(|i| values(&inputs[i]).map(|x| memory.floats(&spread(&x, strides[i], self.gap))));
        let (inputs, grad) = ([q?, k?, v?], memory.floats(&values(&inputs[3])?));
        let [blocks, pieces, entries] = [plan.blocks(), plan.pieces(), plan.entries()].map(|table| memory.words(table));
        let (rows, len, key_len) = (queries * heads, queries * heads * dim, keys * groups * dim);
        let [out, alone, dq] = [(); 3].map(|()| memory.room(len));
        let [dk, dv, dv_alone, dk_alone] = [(); 4].map(|()| memory.room(key_len));
        let [kept, means] = [2 * rows, rows].map(|n| memory.room(n));
        let tables = [blocks, pieces, entries];
        memory.run(&plan.forward(inputs, blocks, out, Some(kept)));
        memory.run(&plan.forward(inputs, blocks, alone, None));
        memory.run(&plan.means([grad, out, means]));
        memory.run(&plan.backward_queries(inputs, blocks, [grad, means, kept, dq]));
        memory.run(&plan.backward_keys(inputs, tables, [grad, means, kept], [Some(dk), Some(dv)]));
        memory.run(&plan.backward_keys(inputs, tables, [grad, means, kept], [None, Some(dv_alone)]));
        memory.run(&plan.backward_keys(inputs, tables, [grad, means, kept], [Some(dk_alone), None]));
        for (a, b) in [(out, alone), (dv, dv_alone), (dk, dk_alone)] {
            assert_eq!(memory.read(a), memory.read(b), "{}: alone and with others", self.name);
        }
        Ok([out, dq, dk, dv].map(|place| memory.read_floats(place)))
    }

    /// The same by an operation on tensors of a type.
    fn by(&self, inputs: &[Tensor; 4], dtype: DType, op: Op) -> Result<[Tensor; 4]> {
        let [q, k, v, grad] = inputs.each_ref().map(|x| x.to_dtype(dtype));
        let [q, k, v] = [Var::from_tensor(&q?)?, Var::from_tensor(&k?)?, Var::from_tensor(&v?)?];
        let out = op(&q, &k, &v, &self.spans, &self.how())?;
        let grads = (&out * grad?)?.sum_all()?.backward()?;
        let of = |var: &Var| grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok);
        Ok([out.detach(), of(&q)?, of(&k)?, of(&v)?])
    }
}

type Op = fn(&Tensor, &Tensor, &Tensor, &[Span], &Attend) -> Result<Tensor>;

fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// Rows with NaN between them.
fn spread(values: &[f32], stride: usize, gap: usize) -> Vec<f32> {
    let rows = values.chunks(stride - gap);
    rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(f32::NAN, gap))).collect()
}

/// A processor that multiplies and adds in one rounding; on others the CPU's own version rounds twice.
fn fuses() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn cases() -> Vec<Case> {
    let several = Case::new;
    let overlapping = vec![
        Span { queries: 0..3, prefix: 2..6, keys: 4..9 },
        Span { queries: 3..3, prefix: 0..2, keys: 0..0 },
        Span { queries: 3..9, prefix: 0..0, keys: 3..12 },
    ];
    vec![
        several("one element", (1, 1, 1), alone(&[1])),
        several("one query of several heads", (6, 2, 5), decoding(&[4])),
        several("rows alone", (6, 2, 5), alone(&[5, 0, 9])),
        several("rows of one key each", (2, 1, 3), alone(&[1, 1])),
        Case { softcap: Some(0.7), ..several("capped", (3, 1, 16), alone(&[30, 7])) },
        Case { window: Some(9), ..several("two blocks in a window", (4, 4, 8), alone(&[70])) },
        Case { window: Some(1), ..several("only itself", (2, 2, 4), alone(&[70])) },
        Case { softcap: Some(2.0), window: Some(2), gap: 3, ..several("both, apart", (2, 2, 20), alone(&[3, 40])) },
        Case { window: Some(68), gap: 1, ..several("a shared prefix", (2, 1, 8), behind(66, &[3, 70])) },
        several("keys that overlap", (2, 2, 4), overlapping),
        several("decoding", (4, 2, 8), decoding(&[4, 1, 70, 130])),
        Case { window: Some(20), ..several("a cache", (2, 1, 4), cached(&[(9, 2), (4, 4), (80, 3)])) },
        several("more heads than lanes", (70, 1, 2), alone(&[3])),
        // Seven lanes at a time forward, four backward, three keys.
        Case { shared: 4 * (64 * 33 + 7 * 133), ..several("little memory", (4, 2, 32), alone(&[21, 40])) },
        Case { shared: 4 * (64 * 33 + 236), ..several("hardly any memory", (1, 1, 32), alone(&[3, 2])) },
        several("wide heads", (2, 1, 256), alone(&[7, 70])),
    ]
}

#[test]
fn outputs_and_gradients_are_those_of_the_cpu_bit_for_bit() -> Result<()> {
    if !emulator::available() {
        return Ok(());
    }
    for case in cases() {
        let inputs = case.inputs()?;
        let got = case.emulated(&inputs)?;
        let want = case.by(&inputs, DType::F32, fast::attend)?;
        let plain = case.by(&inputs, DType::F64, reference::attend)?;
        // A gradient may be zero in exact arithmetic: what is left is the rounding of terms as large as the values are.
        let largest = plain.iter().map(common::values).collect::<Result<Vec<_>>>()?;
        let largest = largest.iter().flatten().fold(0.0, |a: f64, b| a.max(b.abs()));
        for (i, what) in ["output", "gradient by q", "gradient by k", "gradient by v"].into_iter().enumerate() {
            let what = format!("{}: {what}", case.name);
            let (fast, plain) = (values(&want[i])?, common::values(&plain[i])?);
            assert_eq!(got[i].len(), fast.len(), "{what}");
            for (at, ((got, fast), plain)) in got[i].iter().zip(fast).zip(plain).enumerate() {
                let error = (f64::from(*got) - plain).abs();
                assert!(error <= TOLERANCE * largest, "{what}: element {at} is {got}, not {plain}");
                assert!(!fuses() || got.to_bits() == fast.to_bits(), "{what}: element {at} is {got}, not {fast}");
            }
        }
    }
    Ok(())
}

#[test]
fn nan_in_gives_nan_out_and_only_where_it_is_seen() -> Result<()> {
    if !emulator::available() {
        return Ok(());
    }
    let case = Case { window: Some(30), ..Case::new("NaN", (2, 1, 4), alone(&[70, 5])) };
    let clean = case.inputs()?;
    // Which of the output and the gradients by q, k and v it reaches.
    let reached = [("q", [true; 4]), ("k", [true; 4]), ("v", [true, true, true, false])];
    let reached = reached.into_iter().chain([("the gradient", [false, true, true, true])]);
    for (i, (name, reached)) in reached.enumerate() {
        let mut inputs = clean.clone();
        let mut changed = values(&inputs[i])?;
        changed[0] = f32::NAN;
        inputs[i] = Tensor::from_vec(changed, inputs[i].shape(), &Device::Cpu)?;
        let got = case.emulated(&inputs)?;
        let row = 2 * 4;
        let shows = got.each_ref().map(|x| x.iter().any(|x| x.is_nan()));
        assert_eq!(shows, reached, "NaN in {name}");
        assert!(got[0][70 * row..].iter().all(|x| x.is_finite()), "NaN in {name} reaches another row");
        assert!(got[1][70 * row..].iter().all(|x| x.is_finite()), "NaN in {name} reaches another row's gradient");
    }
    Ok(())
}

#[test]
fn extreme_input_gives_finite_output_and_gradients() -> Result<()> {
    if !emulator::available() {
        return Ok(());
    }
    for softcap in [None, Some(30.0)] {
        let case = Case { softcap, ..Case::new("extreme", (2, 1, 8), alone(&[9, 3])) };
        for scale in [1e-30, 1e2, 1e4] {
            let mut inputs = case.inputs()?;
            inputs[0] = (&inputs[0] * scale)?;
            let got = case.emulated(&inputs)?;
            assert!(got.iter().flatten().all(|x| x.is_finite()), "{softcap:?} at {scale:e}: {got:?}");
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let of = Grouped {
        queries: 3,
        keys: 3,
        heads: 4,
        groups: 2,
        dim: 8,
        strides: [32, 16, 16],
        how: Attend { scale: 1.0, softcap: None, window: None },
        shared: 40_000,
    };
    let spans = alone(&[3]);
    assert!(Plan::new(of, &spans).is_ok());
    let window = Attend { window: Some(0), ..of.how };
    let wrong = [
        (Grouped { queries: 4, ..of }, "cover 3 of 4"),
        (Grouped { keys: 2, ..of }, "of 2"),
        (Grouped { groups: 3, ..of }, "nothing to do"),
        (Grouped { how: window, ..of }, "a window of 0 keys"),
        (Grouped { strides: [31, 16, 16], ..of }, "overlap"),
        (Grouped { shared: 2000, ..of }, "shared memory"),
    ];
    for (of, message) in wrong {
        let error = Plan::new(of, &spans).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(message), "{error}, not {message}");
    }
    Ok(())
}
