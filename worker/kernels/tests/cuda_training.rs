//! Loss, update and nearest neighbours as CUDA kernels, executed on the CPU, against the CPU's own versions.

mod common;
#[path = "../cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

use common::numbers;
use emulator::{Memory, Place};
use taskvec_kernels::{
    Adam,
    cuda::{
        analysis::Points,
        training::{RATES, Rings, adam, squares},
    },
    slices::{self, Update},
};

const SLOTS: usize = 3;

fn floats(seed: u64, n: usize) -> Vec<f32> {
    numbers(seed, n).into_iter().map(|x| x as f32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn losses_go_to_their_slots_and_gradients_are_theirs() {
    if !emulator::available() {
        return;
    }
    for (runs, count) in [(1, 1), (1, 33), (3, 700)] {
        let (predicted, target) = (floats(1, runs * count), floats(2, runs * count));
        let mut memory = Memory::default();
        let [p, t] = [&predicted, &target].map(|x| memory.floats(x));
        let steps: Vec<u64> = (0..runs as u64).map(|run| 7 + run).collect();
        let (step, losses) = (memory.longs(&steps), memory.doubles(&vec![-1.0; runs * SLOTS * 2]));
        memory.run(&Rings { runs, slots: SLOTS }.mse(count, [p, t, step, p, losses]));
        let losses = memory.read_doubles(losses);
        for (run, step) in steps.iter().enumerate() {
            let part = run * count..(run + 1) * count;
            let errors: Vec<f64> = predicted[part.clone()]
                .iter()
                .zip(&target[part.clone()])
                .map(|(p, t)| f64::from(*p) - f64::from(*t))
                .collect();
            let slot = (run * SLOTS + *step as usize % SLOTS) * 2;
            let mean = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>() / count as f64;
            let of_zero = mean(&mut target[part.clone()].iter().map(|&t| f64::from(t)));
            for (got, want) in losses[slot..].iter().zip([mean(&mut errors.iter().copied()), of_zero]) {
                assert!((got - want).abs() <= 1e-13 * want, "{got}, not {want}");
            }
            let gradients: Vec<f32> = errors.iter().map(|error| (2.0 * error / count as f64) as f32).collect();
            assert_eq!(bits(&memory.read_floats(p)[part]), bits(&gradients));
        }
        assert_eq!(losses.iter().filter(|&&loss| loss == -1.0).count(), runs * (SLOTS - 1) * 2, "other slots are left");
    }
}

/// What an optimiser holds of S runs.
struct State {
    count: usize,
    runs: usize,
    flat: [Vec<f32>; 4],
    step: Vec<u64>,
}

const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.9999, epsilon: 1e-8, weight_decay: 0.0 };

/// One update: the state after it, and the norms of each run.
fn update(of: Adam, state: &State, rates: &[f64], limits: &[f64]) -> (State, Vec<f64>) {
    let (runs, count) = (state.runs, state.count);
    let parts = count.div_ceil(1 << 14);
    let mut memory = Memory::default();
    let [param, grad, m, v] = [0, 1, 2, 3].map(|i| memory.floats(&state.flat[i]));
    let [partials, norms] = [runs * parts, runs * SLOTS].map(|n| memory.unwritten(8 * n));
    let ring: Vec<f64> = rates.iter().flat_map(|rate| [*rate; SLOTS]).collect();
    let (ring, limits) = (memory.doubles(&ring), memory.doubles(limits));
    let (step, factors) = (memory.longs(&state.step), memory.unwritten(runs * RATES));
    let rings = Rings { runs, slots: SLOTS };
    memory.run(&squares(runs, count, [grad, partials]));
    memory.run(&rings.adam_rates(of, count, [partials, ring, limits, step, norms, factors]));
    memory.run(&adam(runs, count, [grad, factors, param, m, v]));
    let all = memory.read_doubles(norms);
    let norms = (0..runs).map(|run| all[run * SLOTS + state.step[run] as usize % SLOTS]).collect();
    let read = |place: Place| memory.read_floats(place);
    let step = memory.read(step).as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
    (State { count, runs, flat: [read(param), read(grad), read(m), read(v)], step }, norms)
}

#[test]
fn updates_are_those_of_the_cpu_bit_for_bit() {
    if !emulator::available() {
        return;
    }
    let (rates, limits) = ([1e-3, 3e-2, 0.5], [f64::INFINITY, 0.7, 1e9]);
    for (runs, count, weight_decay, scale) in
        [(1, 1, 0.0, 1.0), (2, 257, 0.3, 1.0), (3, 20_000, 0.0, 1.0), (2, 33, 0.1, 1e15), (3, 5, 0.0, 1e-30)]
    {
        let of = Adam { weight_decay, ..ADAM };
        let len = runs * count;
        let grad = floats(2, len).iter().map(|g| g * scale).collect();
        let flat = [floats(1, len), grad, floats(3, len), floats(4, len).iter().map(|v| v * v).collect()];
        let steps = [1, 2, 40_000];
        let state = State { count, runs, flat, step: steps[..runs].to_vec() };
        let (after, norms) = update(of, &state, &rates[..runs], &limits[..runs]);
        for run in 0..runs {
            let part = run * count..(run + 1) * count;
            let [mut param, grad, mut m, mut v] = [0, 1, 2, 3].map(|i| state.flat[i][part.clone()].to_vec());
            let want = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            assert!((norms[run] - want).abs() <= 1e-12 * want, "{}, not {want}", norms[run]);
            let grad_scale = (limits[run] / (norms[run] + 1e-6)).min(1.0);
            let at = Update { t: state.step[run], learning_rate: rates[run], grad_scale };
            slices::adam(&of, &mut param, &grad, [&mut m, &mut v], at);
            for (i, want) in [param, grad, m, v].iter().enumerate() {
                assert_eq!(bits(&after.flat[i][part.clone()]), bits(want), "run {run} of {runs} × {count}, buffer {i}");
            }
            assert_eq!(after.step[run], state.step[run] + 1);
        }
    }
}

#[test]
fn a_diverging_run_stays_as_it_is_and_the_others_do_not_notice() {
    if !emulator::available() {
        return;
    }
    let (runs, count) = (3, 300);
    let state = |broken: Option<f32>| {
        let mut grad = floats(2, runs * count);
        grad[count + 5] = broken.unwrap_or(grad[count + 5]);
        let flat = [floats(1, runs * count), grad, vec![0.0; runs * count], vec![0.0; runs * count]];
        State { count, runs, flat, step: vec![1; runs] }
    };
    let (good, _) = update(ADAM, &state(None), &[1e-3; 3], &[1.0; 3]);
    for value in [f32::NAN, f32::INFINITY] {
        let (bad, norms) = update(ADAM, &state(Some(value)), &[1e-3; 3], &[1.0; 3]);
        assert!(!norms[1].is_finite() && norms[0].is_finite() && norms[2].is_finite(), "{norms:?}");
        for buffer in [0, 2, 3] {
            let run = |state: &State, run: usize| bits(&state.flat[buffer][run * count..(run + 1) * count]);
            assert_eq!(run(&bad, 1), run(&state(None), 1));
            assert_eq!([run(&bad, 0), run(&bad, 2)], [run(&good, 0), run(&good, 2)]);
        }
    }
}

/// The rules of the analysis, written out.
fn nearest(points: &[f32], dim: usize, k: usize) -> Vec<u32> {
    let rows: Vec<&[f32]> = points.chunks(dim).collect();
    let distance =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum() };
    let near = |i: usize| {
        let mut others: Vec<(f64, u32)> =
            (0..rows.len()).filter(|&j| j != i).map(|j| (distance(rows[i], rows[j]), j as u32)).collect();
        others.sort_by(|a, b| a.0.is_nan().cmp(&b.0.is_nan()).then(a.0.total_cmp(&b.0)).then(a.1.cmp(&b.1)));
        others.into_iter().take(k).map(|(_, j)| j)
    };
    (0..rows.len()).flat_map(near).collect()
}

#[test]
fn neighbours_are_found_with_ties_and_without_what_is_not_a_number() {
    if !emulator::available() {
        return;
    }
    for (sets, points, dim, k) in [(1, 2, 1, 1), (1, 5, 3, 0), (2, 40, 9, 39), (3, 33, 16, 7), (1, 300, 4, 60)] {
        // Few values, so that many distances are equal, and exact in any order.
        let mut values: Vec<f32> = floats(1, sets * points * dim).iter().map(|x| (x * 3.0).round()).collect();
        if points > 20 {
            (values[7 * dim], values[9 * dim], values[12 * dim]) = (f32::NAN, f32::INFINITY, f32::MAX);
        }
        let mut memory = Memory::default();
        let (place, out) = (memory.floats(&values), memory.unwritten(4 * sets * points * k));
        memory.run(&Points { sets, points, dim }.neighbours(k, [place, out]));
        let want: Vec<u32> = values.chunks(points * dim).flat_map(|set| nearest(set, dim, k)).collect();
        assert_eq!(memory.read_words(out), want, "{sets} × {points} × {dim}, {k} nearest");
    }
}
