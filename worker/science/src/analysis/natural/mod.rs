//! What is measured on a language model, on prompts of tasks in words: [`measure`] (accuracy, task decodability, logit
//! lens, all from one pass over each prompt) and [`intervene`] (activation patching).
//!
//! Prompts are functions of (seed, task, shots, index), so that all analyses of a run, and of every checkpoint, see the
//! same ones. They go through the model packed, row after row without padding; how many go together does not change them.

mod answers;
pub mod intervene;
mod lens;
mod limits;
pub mod measure;
mod pass;
mod states;

use crate::{
    Control, ScienceError, Sink,
    model::language::LanguageModel,
    task::{Prompt, Prompts, Series, Split},
    tokenizer::Tokenizer,
};
use std::{ops::Range, time::Instant};
use taskvec_model::job::Progress;

/// A language model and its tokenizer.
pub struct Reader {
    pub model: LanguageModel,
    pub tokenizer: Tokenizer,
}

/// Tokens that go through a model together, at most, unless one prompt alone has more: enough to keep the products busy,
/// and few enough for their activations to stay small.
pub(crate) const TOKENS: usize = 2048;

/// Passes side by side, at most, of which only states are kept. Each runs on a thread of its own, so that none waits for
/// another at every operation; where there are more threads, they help.
const PASSES: usize = 4;

/// Tokens in passes side by side: with neither keys nor values to keep, and no predictions, they take about as much memory as half
/// as many that rows go on from.
pub(crate) const TOKENS_TOGETHER: usize = 2 * TOKENS;

/// Prompts of all tasks with the same number of shots: `each` of every task, task after task.
fn all_tasks(prompts: &Prompts<'_>, tasks: usize, shots: u32, each: u32) -> Result<Vec<Prompt>, ScienceError> {
    let mut all = Vec::new();
    for task in 0..tasks {
        let series = Series { task, split: Split::Test, shots, replicate: 0 };
        all.extend(prompts.batch(series, 0..u64::from(each))?);
    }
    Ok(all)
}

/// Cuts prompts into runs of at most `tokens` tokens, about equally long: as few as that takes, or a few more to have a
/// multiple of `passes`. A prompt that has more tokens is alone.
fn cuts(prompts: &[Prompt], tokens: usize, passes: usize) -> Vec<Range<usize>> {
    let total = total(prompts);
    let wanted = full_up(prompts, tokens, tokens).len().next_multiple_of(passes);
    full_up(prompts, total.div_ceil(wanted.max(1)), tokens)
}

/// The tokens of some prompts.
fn total(prompts: &[Prompt]) -> usize {
    prompts.iter().map(|p| p.tokens.len()).sum()
}

/// Runs that are full with so many tokens, and never hold more than `most`.
fn full_up(prompts: &[Prompt], full: usize, most: usize) -> Vec<Range<usize>> {
    let mut cuts: Vec<Range<usize>> = Vec::new();
    let mut sum = 0;
    for (i, prompt) in prompts.iter().enumerate() {
        let len = prompt.tokens.len();
        match cuts.last_mut() {
            Some(last) if sum < full && sum + len <= most => last.end = i + 1,
            _ => {
                sum = 0;
                cuts.push(i..i + 1);
            }
        }
        sum += len;
    }
    cuts
}

/// Tells how far a job is, and hears when it shall stop.
struct Meter<'a> {
    sink: &'a mut dyn Sink,
    start: Instant,
    done: u64,
    total: u64,
}

impl<'a> Meter<'a> {
    fn new(sink: &'a mut dyn Sink, total: u64) -> Self {
        Self { sink, start: Instant::now(), done: 0, total }
    }

    /// # Errors
    /// [`ScienceError::Stopped`] when the sink asks for it before the end.
    fn add(&mut self, items: usize) -> Result<(), ScienceError> {
        self.done += items as u64;
        let per_second = self.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let progress = Progress { done: self.done, total: self.total, per_second, loss: None };
        match self.sink.progress(progress) {
            Control::Stop if self.done < self.total => Err(ScienceError::Stopped),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_all_prompts_in_order_and_hold_few_tokens() {
        let prompt = |tokens: usize| Prompt {
            series: Series { task: 0, split: Split::Test, shots: 0, replicate: 0 },
            index: 0,
            text: String::new(),
            tokens: vec![0; tokens],
            answer: String::new(),
            answer_tokens: Vec::new(),
            x_sites: Vec::new(),
            y_sites: Vec::new(),
            most_generated: 1,
        };
        let prompts: Vec<Prompt> = [3, 4, 3, 20, 1, 9].map(prompt).to_vec();
        assert_eq!(cuts(&prompts, 10, 1), [0..3, 3..4, 4..6]);
        assert_eq!(cuts(&prompts, 25, 1), [0..3, 3..4, 4..6], "10, 20 and 10");
        assert_eq!(cuts(&prompts, 40, 1).len(), 1);
        assert_eq!(cuts(&prompts, 40, 2), [0..4, 4..6], "two at a time");
        assert!(cuts(&[], 10, 2).is_empty());
    }
}
