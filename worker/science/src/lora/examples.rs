//! What adapters are trained on, and in which order.

use crate::{
    ScienceError,
    rng::{Purpose, Stream, permuted},
    task::{Prompts, Series, Split},
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

/// The examples of a run, made of training items alone when they are needed. Tasks take turns, so that each has as many as
/// any other (or one more); in each round all `max_examples` come once, in an order of the round's own.
pub(super) struct Examples<'a> {
    prompts: Prompts<'a>,
    tasks: u64,
    train: &'a TuneSpec,
    seed: u64,
}

impl<'a> Examples<'a> {
    /// `tasks` is how many the prompts are of.
    pub fn new(prompts: Prompts<'a>, tasks: usize, train: &'a TuneSpec, seed: u64) -> Self {
        Self { prompts, tasks: tasks as u64, train, seed }
    }

    /// Those of update `step`, from 1.
    ///
    /// # Errors
    /// Where a task has too few items, an answer merges with its prompt, or a prompt is too long for the model.
    pub fn batch(&self, step: u64) -> Result<Vec<Example>, ScienceError> {
        let TuneSpec { batch, max_examples, .. } = *self.train;
        let first = (step - 1) * u64::from(batch);
        let places: Vec<u64> = (first..first + u64::from(batch)).collect();
        let made = places.into_par_iter().map(|place| self.made(number(self.seed, max_examples.into(), place)));
        made.collect::<Vec<_>>().into_iter().collect()
    }

    fn made(&self, number: u64) -> Result<Example, ScienceError> {
        let (task, index) = ((number % self.tasks) as usize, number / self.tasks);
        let series = Series { task, split: Split::Train, shots: self.train.shots, replicate: 0 };
        let prompt = self.prompts.batch(series, index..index + 1)?.swap_remove(0);
        let target = self.prompts.target(&prompt)?;
        Ok(Example { prompt: prompt.tokens, target })
    }
}

/// Which of `count` examples comes at a place in the order of the run.
fn number(seed: u64, count: u64, place: u64) -> u64 {
    permuted(Stream { seed, purpose: Purpose::Examples, step: place / count }, count, place % count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_round_has_all_examples_in_an_order_of_its_own() {
        let order: Vec<u64> = (0..30).map(|place| number(3, 10, place)).collect();
        let rounds: Vec<&[u64]> = order.chunks_exact(10).collect();
        for round in &rounds {
            assert_eq!(round.iter().copied().collect::<BTreeSet<_>>(), (0..10).collect(), "{round:?}");
        }
        assert!(rounds[0] != rounds[1] && rounds[1] != rounds[2]);
        assert_ne!(number(4, 1000, 0), number(3, 1000, 0));
    }
}
