//! Greedy answers: are they right?

use super::pass::Begun;
use crate::{
    ScienceError,
    model::language::{LanguageModel, go_on},
    task::{Prompt, Prompts, Verdict},
};

/// Lets the model go on from each prompt until its answer is decided: is it the right one?
///
/// Only as many tokens are generated as it takes to know.
pub(super) fn right(
    model: &LanguageModel,
    prompts: &Prompts<'_>,
    asked: &[&Prompt],
    begun: Begun,
) -> Result<Vec<bool>, ScienceError> {
    let most = asked.iter().map(|p| p.most_generated).max().unwrap_or(0);
    let mut failed = None;
    let stop = |row: usize, tokens: &[u32]| match prompts.judge(asked[row], tokens) {
        Ok(Verdict::Open) => false,
        Ok(Verdict::Right | Verdict::Wrong) => true,
        Err(error) => {
            failed = Some(error);
            true
        }
    };
    let Begun { mut cache, logits } = begun;
    let answers = go_on(model, &mut cache, logits, most, stop, None)?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let judged = asked.iter().zip(&answers).map(|(prompt, tokens)| prompts.judge(prompt, tokens));
    judged.map(|verdict| Ok(verdict? == Verdict::Right)).collect()
}
