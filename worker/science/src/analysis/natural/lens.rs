//! The logit lens: what the final norm and the unembedding make of the state before the answer, layer by layer
//! (nostalgebraist 2020). Judged by the first token of the right answer.

use crate::{ScienceError, model::language::LanguageModel};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;
use taskvec_model::metric::Lens;

/// What is known of one answer token in one prompt at one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    log_prob: f64,
    /// 1 + the tokens that are likelier.
    rank: usize,
}

/// The token that a prompt's state should name.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub task: usize,
    /// Of the prompt, among those of the task.
    pub index: u64,
    pub token: u32,
}

/// What was seen, by layer and task and then by prompt, so that means do not depend on the order in which prompts came.
#[derive(Default)]
pub(super) struct Lenses {
    seen: BTreeMap<(u32, usize), BTreeMap<u64, Seen>>,
}

impl Lenses {
    /// Adds what `layer` says: its states (B, d), and for each row what it should name.
    pub fn add(
        &mut self,
        model: &LanguageModel,
        layer: u32,
        states: &Tensor,
        wanted: &[Wanted],
    ) -> Result<(), ScienceError> {
        let logits = model.logits(states)?.to_vec2::<f32>()?;
        let looked: Vec<Seen> = logits.par_iter().zip(wanted).map(|(row, wanted)| look(row, wanted.token)).collect();
        for (seen, wanted) in looked.into_iter().zip(wanted) {
            if !seen.log_prob.is_finite() {
                return Err(ScienceError::NotFinite { layer });
            }
            self.seen.entry((layer, wanted.task)).or_default().insert(wanted.index, seen);
        }
        Ok(())
    }

    pub fn rows(&self, tasks: &[String], shots: u32) -> Vec<Lens> {
        let row = |(&(layer, task), seen): (&(u32, usize), &BTreeMap<u64, Seen>)| {
            let mean = |value: fn(&Seen) -> f64| seen.values().map(value).sum::<f64>() / seen.len() as f64;
            Lens {
                layer,
                latent_task: tasks[task].clone(),
                shots,
                accuracy: mean(|s| f64::from(u8::from(s.rank == 1))),
                log_prob: mean(|s| s.log_prob),
                rank: mean(|s| s.rank as f64),
                n: seen.len() as u32,
            }
        };
        self.seen.iter().map(row).collect()
    }
}

fn look(logits: &[f32], token: u32) -> Seen {
    let own = logits[token as usize];
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
    let rank = 1 + logits.iter().filter(|l| **l > own).count();
    Seen { log_prob: f64::from(own - most) - sum.ln(), rank }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probability_and_rank_of_a_token() {
        let logits = [0.0, 1.0, 3.0, 1.0];
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (token, rank) in [(0, 4), (1, 2), (2, 1), (3, 2)] {
            let seen = look(&logits, token);
            assert_eq!(seen.rank, rank);
            assert!((seen.log_prob - (f64::from(logits[token as usize]).exp() / sum).ln()).abs() < 1e-6);
        }
    }
}
