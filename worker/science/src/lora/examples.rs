//! What adapters are trained on, and in which order.

use crate::{
    ScienceError,
    rng::{Purpose, Stream},
    task::{Prompts, Series, Split, shuffled},
};
use rayon::prelude::*;
use taskvec_model::spec::TuneSpec;

/// A prompt and what is to be written after it. Neither is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub prompt: Vec<u32>,
    /// The tokens the loss is taken over.
    pub target: Vec<u32>,
}

/// The examples of a run. Tasks take turns, so that each has as many as any other (or one more); in each round all examples
/// come once, in an order of the round's own.
pub(super) struct Examples {
    all: Vec<Example>,
    seed: u64,
}

impl Examples {
    /// Makes all `max_examples`, from training items alone: what cannot be made is known before training begins.
    ///
    /// # Errors
    /// Where a task has too few items, an answer merges with its prompt, or a prompt is too long for the model.
    pub fn new(prompts: &Prompts<'_>, tasks: usize, train: &TuneSpec, seed: u64) -> Result<Self, ScienceError> {
        let (count, shots) = (train.max_examples as usize, train.shots);
        let mut by_task = Vec::with_capacity(tasks);
        for task in 0..tasks {
            let each = count.saturating_sub(task).div_ceil(tasks) as u64;
            let series = Series { task, split: Split::Train, shots, replicate: 0 };
            let made = prompts.batch(series, 0..each)?.into_par_iter().map(|prompt| {
                let target = prompts.target(&prompt)?;
                Ok(Example { prompt: prompt.tokens, target })
            });
            let made: Vec<Result<Example, ScienceError>> = made.collect();
            by_task.push(made.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter());
        }
        let all = (0..count).filter_map(|i| by_task[i % tasks].next()).collect();
        Ok(Self { all, seed })
    }

    /// The `size` examples of update `step`, from 1.
    pub fn batch(&self, step: u64, size: u32) -> Vec<&Example> {
        let (n, size) = (self.all.len() as u64, u64::from(size));
        let first = (step - 1) * size;
        let mut round = None;
        let mut at = |place: u64| {
            let (number, within) = (place / n, (place % n) as usize);
            let (_, order) = match round.take() {
                Some((known, order)) if known == number => round.insert((known, order)),
                _ => round.insert((number, self.order(number))),
            };
            &self.all[order[within]]
        };
        (first..first + size).map(&mut at).collect()
    }

    fn order(&self, round: u64) -> Vec<usize> {
        let stream = Stream { seed: self.seed, purpose: Purpose::Examples, step: round };
        shuffled(stream.at(0), self.all.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn examples(count: u32) -> Examples {
        let all = (0..count).map(|i| Example { prompt: vec![i], target: vec![0] }).collect();
        Examples { all, seed: 3 }
    }

    /// Which examples the first `steps` batches have.
    fn order(examples: &Examples, steps: u64, size: u32) -> Vec<u32> {
        (1..=steps).flat_map(|step| examples.batch(step, size)).map(|e| e.prompt[0]).collect()
    }

    #[test]
    fn every_round_has_all_examples_in_an_order_of_its_own() {
        let order = order(&examples(10), 9, 4);
        let rounds: Vec<&[u32]> = order.chunks_exact(10).collect();
        for round in &rounds {
            assert_eq!(round.iter().collect::<BTreeSet<_>>().len(), 10, "{round:?}");
        }
        assert!(rounds[0] != rounds[1] && rounds[1] != rounds[2]);
        assert_ne!(rounds[0], (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_batch_may_be_larger_than_a_round() {
        let order = order(&examples(3), 2, 7);
        assert_eq!(order.len(), 14);
        assert!(order.chunks_exact(3).all(|round| round.iter().collect::<BTreeSet<_>>().len() == 3));
    }
}
