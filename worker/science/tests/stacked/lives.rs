//! Runs side by side have lives of their own.

use crate::{
    on_machines,
    runs::{Own, SHAPES, Shape, runs, state},
};
use taskvec_kernels::cuda::program::Machine;
use taskvec_model::spec::SparseLinear;
use taskvec_science::engine::stacked::{Advanced, Diverged, Run, StackedEngine, StackedError};

on_machines!(
    a_run_is_the_same_alone_and_among_others,
    a_diverging_run_ends_and_the_others_do_not_notice,
    what_was_interrupted_goes_on_to_the_same_bytes,
    what_cannot_be_is_refused,
);

/// What runs gave and, of those that live, every bit of their state, after `steps` looked at every `every`.
fn trained(machine: &impl Machine, shape: Shape, runs: &[Own], (steps, every): (usize, usize)) -> Vec<Trained> {
    let mut engine = shape.engine(machine, runs, every);
    let mut lives: Vec<Advanced> = runs.iter().map(|_| Advanced { rows: Vec::new(), diverged: None }).collect();
    for _ in 0..steps / every {
        for (life, now) in lives.iter_mut().zip(engine.advance(every, |run, _| runs[run].rate).unwrap()) {
            life.rows.extend(now.rows);
            life.diverged = now.diverged;
        }
    }
    let state = |run| Some(state(&engine.network(run).ok()?, &engine.moments(run).ok()?));
    lives.into_iter().enumerate().map(|(run, life)| (life, state(run))).collect()
}

type Trained = (Advanced, Option<Vec<Vec<u32>>>);

fn a_run_is_the_same_alone_and_among_others(machine: &impl Machine) {
    for shape in SHAPES {
        let runs = runs(shape);
        // Rings of one slot and of two.
        let together = trained(machine, shape, &runs, (4, 2));
        for (own, among) in runs.iter().zip(&together) {
            let alone = trained(machine, shape, std::slice::from_ref(own), (4, 1));
            assert!(among.1.is_some() && alone == [among.clone()], "{shape:?}, seed {}", own.seed);
        }
    }
}

fn a_diverging_run_ends_and_the_others_do_not_notice(machine: &impl Machine) {
    let shape = SHAPES[0];
    let good = runs(shape);
    let undisturbed = trained(machine, shape, &good, (4, 2));
    let mut beyond = good.clone();
    // Its y is no number of f32.
    beyond[1].data = SparseLinear { weight_mean: 1e60, ..good[1].data.clone() };
    let mut leaps = good.clone();
    leaps[1].rate = 1e30;
    for (runs, step) in [(beyond, 8), (leaps, 9)] {
        let disturbed = trained(machine, shape, &runs, (4, 2));
        let (life, state) = &disturbed[1];
        assert_eq!(life.diverged.map(|diverged| diverged.step), Some(step), "{life:?}");
        assert!(state.is_none() && life.rows.len() == (step - 8) as usize, "{life:?}");
        assert_eq!([&disturbed[0], &disturbed[2]], [&undisturbed[0], &undisturbed[2]]);
    }
}

fn what_was_interrupted_goes_on_to_the_same_bytes(machine: &impl Machine) {
    let shape = SHAPES[1];
    let runs = runs(shape);
    let whole = trained(machine, shape, &runs, (6, 3));
    let mut first = shape.engine(machine, &runs, 3);
    let begun = first.advance(3, |run, _| runs[run].rate).unwrap();
    let states: Vec<_> = (0..3).map(|i| (first.network(i).unwrap(), first.moments(i).unwrap())).collect();
    // In another order, and with rings of another length.
    let again = [2, 0, 1].map(|i: usize| Own { step: runs[i].step + 3, ..runs[i].clone() });
    let resumed: Vec<Run<'_>> =
        again.iter().zip([2, 0, 1]).map(|(own, i)| own.run(&states[i].0, Some(&states[i].1))).collect();
    let mut second = StackedEngine::new(machine, &resumed, shape.together(5)).unwrap();
    let ended = second.advance(3, |run, _| again[run].rate).unwrap();
    for (now, i) in [2usize, 0, 1].into_iter().enumerate() {
        let rows = [begun[i].rows.as_slice(), &ended[now].rows].concat();
        let state = state(&second.network(now).unwrap(), &second.moments(now).unwrap());
        assert!((&whole[i].0.rows, whole[i].1.as_ref()) == (&rows, Some(&state)), "run {i}");
    }
}

fn what_cannot_be_is_refused(machine: &impl Machine) {
    let (shape, other) = (SHAPES[0], SHAPES[1]);
    let of = |shape: Shape, i: usize| (shape.network(&runs(shape)[i]), runs(shape).swap_remove(i));
    let ((network, own), (wider, others)) = (of(shape, 0), of(other, 0));
    let refused = |runs: &[Run<'_>]| StackedEngine::new(machine, runs, shape.together(1)).err().unwrap();
    assert!(matches!(refused(&[]), StackedError::Nothing { runs: 0, .. }));
    let none = StackedEngine::new(machine, &[own.run(&network, None)], shape.together(0)).err().unwrap();
    assert!(matches!(none, StackedError::Nothing { runs: 1, batch: 5, slots: 0 }), "{none}");
    let unlike = refused(&[own.run(&network, None), others.run(&wider, None)]);
    assert!(matches!(unlike, StackedError::Unlike { run: 1, what: "model's shape" }), "{unlike}");
    let longer = SparseLinear { rank: 1, ..own.data.clone() };
    let unlike = refused(&[own.run(&network, None), Run { data: &longer, ..own.run(&network, None) }]);
    assert!(matches!(unlike, StackedError::Unlike { run: 1, what: "data's shape" }), "{unlike}");
    let unread = refused(&[others.run(&network, None)]);
    assert!(matches!(unread, StackedError::Unread { run: 0, .. }), "{unread}");
    let unlike = refused(&[Run { moments: Some(&[]), ..own.run(&network, None) }]);
    assert!(matches!(unlike, StackedError::Unlike { run: 0, what: "number of moments" }), "{unlike}");
    let mut engine = shape.engine(machine, &[own], 1);
    let too_far = engine.advance(2, |_, _| 1e-3).err().unwrap();
    assert!(matches!(too_far, StackedError::TooFar { steps: 2, slots: 1 }), "{too_far}");
    let over = Diverged { step: 3, what: "loss is not finite" };
    assert_eq!(
        StackedError::Over { run: 1, diverged: over }.to_string(),
        "run 1 diverged at step 3: loss is not finite"
    );
}
