//! Greedy decoding.

use super::{Batch, Cache, LanguageModel, Logits};
use crate::{
    ScienceError,
    hook::{Hook, reborrow},
};
use candle_core::{D, Tensor};

/// What the model goes on with after each prompt when it always takes the likeliest token.
///
/// A row ends with the token after which `stop(row, tokens so far)` is true, after `max_new` tokens, or where the context
/// is full; the others then go on without it. `hook` sees the pass over the prompts and those over each new token.
///
/// # Errors
/// As [`LanguageModel::forward`].
pub fn generate(
    model: &LanguageModel,
    prompts: &Batch,
    max_new: usize,
    stop: impl FnMut(usize, &[u32]) -> bool,
    mut hook: Option<&mut dyn Hook>,
) -> Result<Vec<Vec<u32>>, ScienceError> {
    let mut cache = model.cache(prompts.len())?;
    let logits = model.forward(prompts, Some(&mut cache), reborrow(&mut hook), Logits::Last)?;
    match logits {
        Some(logits) => go_on(model, &mut cache, logits, max_new, stop, hook),
        None => Ok(vec![Vec::new(); prompts.len()]),
    }
}

/// The same after a pass that was already made: `cache` holds the rows, and `logits` (B, V) predict what comes next in each.
/// Rows leave the cache as they end.
///
/// # Errors
/// As [`LanguageModel::forward`].
pub fn go_on(
    model: &LanguageModel,
    cache: &mut Cache,
    logits: Tensor,
    max_new: usize,
    mut stop: impl FnMut(usize, &[u32]) -> bool,
    mut hook: Option<&mut dyn Hook>,
) -> Result<Vec<Vec<u32>>, ScienceError> {
    let context = model.config().context.unwrap_or(usize::MAX);
    let mut answers = vec![Vec::new(); cache.rows()];
    // The answers that the rows of the cache belong to.
    let mut open: Vec<usize> = (0..cache.rows()).collect();
    let mut logits = Some(logits);
    while let Some(next) = logits.take().filter(|_| max_new > 0 && !open.is_empty()) {
        let next: Vec<u32> = next.argmax(D::Minus1)?.to_vec1()?;
        let mut stay = Vec::new();
        for (i, (&row, &token)) in open.iter().zip(&next).enumerate() {
            answers[row].push(token);
            let full = cache.len(i) >= context;
            if answers[row].len() < max_new && !full && !stop(row, &answers[row]) {
                stay.push(i);
            }
        }
        cache.retain(&stay);
        open = stay.iter().map(|&i| open[i]).collect();
        if open.is_empty() {
            break;
        }
        let batch = Batch::new(stay.iter().map(|&i| [next[i]])).expect("no row is empty");
        logits = model.forward(&batch, Some(cache), reborrow(&mut hook), Logits::Last)?;
    }
    Ok(answers)
}
