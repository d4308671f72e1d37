//! Loops and candle operations against the recurrence itself, token by token in f64, as the paper defines it.

use super::{
    loops::{Columns, Convolution, GroupNorm, convolve, gate, steps},
    plain,
    real::Real,
    scan::{Heads, Sizes, Tokens, scan},
};
use crate::rng::{Purpose, Stream};
use candle_core::{DType, Device, Tensor, Var};
use std::ops::Range;

const SIZES: [Sizes; 3] = [
    Sizes { heads: 4, head_dim: 5, state: 7, groups: 1 },
    Sizes { heads: 4, head_dim: 3, state: 18, groups: 2 },
    Sizes { heads: 3, head_dim: 1, state: 1, groups: 3 },
];

/// Elements of a row's state, (H, P, S).
fn row_state(sizes: Sizes) -> usize {
    sizes.inner() * sizes.state
}

fn normals(stream: u64, count: usize) -> Vec<f64> {
    let mut out = vec![0.0; count + count % 2];
    Stream { seed: 1, purpose: Purpose::Init, step: stream }.at(0).normals(&mut out);
    out.truncate(count);
    out
}

fn rows(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut from = 0;
    let row = |length: &usize| {
        from += length;
        from - length..from
    };
    lengths.iter().map(row).collect()
}

/// What the scan reads, with decays from almost none to almost everything.
struct Case {
    sizes: Sizes,
    rows: Vec<Range<usize>>,
    mixed: Vec<f64>,
    step: Vec<f64>,
    rate: Vec<f64>,
    skip: Vec<f64>,
    states: Vec<f64>,
}

impl Case {
    fn new(sizes: Sizes, lengths: &[usize]) -> Self {
        let rows = rows(lengths);
        let tokens = rows.last().unwrap().end;
        Self {
            mixed: normals(1, tokens * sizes.mixed()),
            step: normals(2, tokens * sizes.heads).iter().map(|x| (1.5 * x).exp()).collect(),
            rate: normals(3, sizes.heads).iter().map(|x| -x.exp()).collect(),
            skip: normals(4, sizes.heads),
            states: normals(5, rows.len() * row_state(sizes)),
            sizes,
            rows,
        }
    }

    /// S ← exp(Δ·a)·S + Δ·x⊗B and y = S·C + d·x: outputs (N, H, P) and last states (rows, H, P, S).
    fn recurrence(&self) -> (Vec<f64>, Vec<f64>) {
        let Sizes { heads, head_dim, state: n, groups } = self.sizes;
        let (mut y, mut states) = (Vec::new(), self.states.clone());
        for (r, row) in self.rows.iter().enumerate() {
            for t in row.clone() {
                let token = &self.mixed[t * self.sizes.mixed()..(t + 1) * self.sizes.mixed()];
                let (x, bc) = token.split_at(heads * head_dim);
                let (b, c) = bc.split_at(groups * n);
                for h in 0..heads {
                    let (g, step) = (h / (heads / groups), self.step[t * heads + h]);
                    for p in 0..head_dim {
                        let mut sum = self.skip[h] * x[h * head_dim + p];
                        for s in 0..n {
                            let state = &mut states[((r * heads + h) * head_dim + p) * n + s];
                            *state *= (step * self.rate[h]).exp();
                            *state += step * x[h * head_dim + p] * b[g * n + s];
                            sum += *state * c[g * n + s];
                        }
                        y.push(sum);
                    }
                }
            }
        }
        (y, states)
    }

    fn loops<T: Real>(&self, chunk: usize) -> (Vec<f64>, Vec<f64>) {
        let cast = |x: &[f64]| -> Vec<T> { x.iter().map(|x| T::of(*x)).collect() };
        let (mixed, step) = (cast(&self.mixed), cast(&self.step));
        let (rate, skip) = (cast(&self.rate), cast(&self.skip));
        let mut states = cast(&self.states);
        let tokens = Tokens { mixed: &mixed, step: &step };
        let y = scan(self.sizes, chunk, &self.rows, tokens, Heads { rate: &rate, skip: &skip }, &mut states);
        let back = |x: Vec<T>| x.into_iter().map(candle_core::WithDType::to_f64).collect();
        (back(y), back(states))
    }

    fn tensors(&self) -> [Tensor; 5] {
        let Sizes { heads, head_dim, state, .. } = self.sizes;
        let tensor = |x: &[f64], shape: &[usize]| Tensor::from_slice(x, shape, &Device::Cpu).unwrap();
        let tokens = self.step.len() / heads;
        [
            tensor(&self.mixed, &[tokens, self.sizes.mixed()]),
            tensor(&self.step, &[tokens, heads]),
            tensor(&self.rate, &[heads]),
            tensor(&self.skip, &[heads]),
            tensor(&self.states, &[self.rows.len(), heads, head_dim, state]),
        ]
    }
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Largest error relative to the largest magnitude.
fn error(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    ours.iter().zip(theirs).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

#[test]
fn chunks_of_any_length_give_the_recurrence() {
    for sizes in SIZES {
        let case = Case::new(sizes, &[1, 37, 64, 5, 100]);
        let (y, states) = case.recurrence();
        for chunk in [1, 2, 16, 33, 64, 1_000] {
            let (our_y, our_states) = case.loops::<f64>(chunk);
            assert!(error(&our_y, &y) < 1e-12 && error(&our_states, &states) < 1e-12, "{sizes:?}, chunks of {chunk}");
            let (our_y, our_states) = case.loops::<f32>(chunk);
            assert!(
                error(&our_y, &y) < 2e-6 && error(&our_states, &states) < 2e-6,
                "{sizes:?}, chunks of {chunk} in f32"
            );
        }
        let [mixed, step, rate, skip, before] = case.tensors();
        for chunk in [1, 33, 1_000] {
            let (our_y, our_states) =
                plain::scan(sizes, chunk, &case.rows, [&mixed, &step, &rate, &skip, &before]).unwrap();
            assert!(
                error(&flat(&our_y), &y) < 1e-10 && error(&flat(&our_states), &states) < 1e-10,
                "{sizes:?} {chunk}"
            );
        }
    }
}

#[test]
fn a_row_does_not_see_the_others_and_goes_on_where_it_was_cut() {
    let case = Case::new(SIZES[1], &[20, 9, 31]);
    let (y, states) = case.loops::<f32>(8);
    let inner = case.sizes.inner();
    for (r, row) in case.rows.iter().enumerate() {
        let (mut ours, mut state) =
            (Vec::new(), case.states[r * row_state(case.sizes)..][..row_state(case.sizes)].to_vec());
        // In two pieces, as a prompt and its continuation.
        for piece in [row.start..row.start + 8, row.start + 8..row.end] {
            let alone = Case {
                sizes: case.sizes,
                rows: rows(&[piece.len()]),
                mixed: case.mixed[piece.start * case.sizes.mixed()..piece.end * case.sizes.mixed()].to_vec(),
                step: case.step[piece.start * case.sizes.heads..piece.end * case.sizes.heads].to_vec(),
                rate: case.rate.clone(),
                skip: case.skip.clone(),
                states: state,
            };
            let (y, after) = alone.loops::<f32>(8);
            ours.extend(y);
            state = after;
        }
        assert_eq!(ours, &y[row.start * inner..row.end * inner], "cut at a chunk's end: the same bits");
        assert_eq!(state, &states[r * row_state(case.sizes)..][..row_state(case.sizes)]);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let case = Case::new(SIZES[1], &[50, 70]);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.loops::<f32>(16))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn gradients_flow_through_the_plain_scan() {
    let case = Case::new(Sizes { heads: 2, head_dim: 2, state: 3, groups: 1 }, &[5, 3]);
    let inputs = case.tensors().map(|t| Var::from_tensor(&t).unwrap());
    let weights = Tensor::from_vec(normals(9, 8 * 4), (8, 4), &Device::Cpu).unwrap();
    let loss = |inputs: &[Tensor; 5]| -> Tensor {
        let (y, states) = plain::scan(case.sizes, 2, &case.rows, inputs.each_ref()).unwrap();
        ((y * &weights).unwrap().sum_all().unwrap() + states.sqr().unwrap().sum_all().unwrap()).unwrap()
    };
    let tensors: [Tensor; 5] = std::array::from_fn(|i| inputs[i].as_tensor().clone());
    let gradients = loss(&tensors).backward().unwrap();
    for i in 0..5 {
        let gradient = flat(gradients.get(&tensors[i]).expect("every input has a gradient"));
        for (j, gradient) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let mut values = flat(&tensors[i]);
                values[j] += by;
                let mut tensors = tensors.clone().map(|t| t.detach());
                tensors[i] = Tensor::from_vec(values, tensors[i].shape(), &Device::Cpu).unwrap();
                loss(&tensors).to_scalar::<f64>().unwrap()
            };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((gradient - difference).abs() < 1e-6 * difference.abs().max(1.0), "input {i}, element {j}");
        }
    }
}

#[test]
fn convolution_steps_and_gate() {
    let (tokens, channels, kernel, width) = (12, 6, 4, 17);
    let rows = rows(&[2, 7, 3]);
    let (data, weight, bias) = (normals(1, tokens * width), normals(2, kernel * channels), normals(3, channels));
    let before = normals(4, rows.len() * (kernel - 1) * channels);
    let input = Columns { data: &data, width, first: 5, count: channels };
    let tensor = |x: &[f64], shape: &[usize]| Tensor::from_slice(x, shape, &Device::Cpu).unwrap();
    let all = tensor(&data, &[tokens, width]);

    let mut after = before.clone();
    let ours = convolve(&rows, input, Convolution { weight: &weight, bias: Some(&bias) }, &mut after);
    let (plain_out, plain_after) = plain::convolve(
        &rows,
        &all.narrow(1, 5, channels).unwrap(),
        &tensor(&weight, &[kernel, channels]),
        Some(&tensor(&bias, &[channels])),
        &tensor(&before, &[rows.len(), kernel - 1, channels]),
    )
    .unwrap();
    // Row 1, token 4: its last four inputs are tokens 1 to 4 of the row, which are 3 to 6 of all.
    let by_hand: f64 =
        (0..kernel).map(|k| data[(3 + k) * width + 5 + 2] * weight[k * channels + 2]).sum::<f64>() + bias[2];
    assert!((ours[6 * channels + 2] - by_hand / (1.0 + (-by_hand).exp())).abs() < 1e-12);
    assert!(error(&ours, &flat(&plain_out)) < 1e-12 && error(&after, &flat(&plain_after)) == 0.0);
    // A row shorter than the kernel keeps the end of its old state.
    assert_eq!(after[..channels], before[2 * channels..3 * channels]);

    let limits = (0.2, 1.5);
    let ours = steps(Columns { first: 1, count: 4, ..input }, &bias[..4], limits);
    let theirs = plain::steps(&all.narrow(1, 1, 4).unwrap(), &tensor(&bias[..4], &[4]), limits).unwrap();
    assert!(error(&ours, &flat(&theirs)) < 1e-12);
    assert!(ours.contains(&0.2) && ours.contains(&1.5), "both limits are met");

    let y = normals(7, tokens * channels);
    let mut ours = y.clone();
    gate(&mut ours, input, GroupNorm { weight: &bias, groups: 3, eps: 1e-5 });
    let z = all.narrow(1, 5, channels).unwrap();
    let theirs = plain::gate(&tensor(&y, &[tokens, channels]), &z, &tensor(&bias, &[channels]), 3, 1e-5).unwrap();
    assert!(error(&ours, &flat(&theirs)) < 1e-12);
}
