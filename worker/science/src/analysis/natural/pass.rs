//! One pass over a run of prompts: states on the way, the cache to go on from, and what comes next in each.

use crate::{
    ScienceError,
    hook::{Capture, Hook, HookPoint, Tokens},
    model::language::{Batch, Cache, LanguageModel, Logits},
    task::Prompt,
};
use candle_core::Tensor;
use std::collections::BTreeSet;
use taskvec_model::spec::{PatchPositions, Site};

/// After a pass over prompts, whose rows can go on.
pub(super) struct Begun {
    pub cache: Cache,
    /// (B, V): what comes next in each.
    pub logits: Tensor,
}

impl Begun {
    /// Only these rows go on.
    pub fn keep(&mut self, rows: &[usize]) -> Result<(), ScienceError> {
        if rows.len() < self.cache.rows() {
            let chosen: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
            self.logits = self.logits.index_select(&Tensor::new(chosen, self.logits.device())?, 0)?;
            self.cache.retain(rows);
        }
        Ok(())
    }
}

/// The tokens of prompts as the rows of a batch. What comes before the tokens that are looked at, which are at most the last
/// one of each site or all of them, is computed once for all prompts that begin with it.
fn batch(model: &LanguageModel, prompts: &[Prompt], looked_at: PatchPositions) -> Batch {
    let before = |sites: &[usize]| match looked_at {
        PatchPositions::Last => sites.last().copied(),
        PatchPositions::All => sites.first().copied(),
    };
    let most = |p: &Prompt| match model.lets_rows_share() {
        true => [before(&p.x_sites), before(&p.y_sites)].into_iter().flatten().min().unwrap_or(0),
        false => 0,
    };
    let most: Vec<usize> = prompts.iter().map(most).collect();
    Batch::sharing(prompts.iter().map(|p| &p.tokens), &most).expect("no prompt is empty: it ends with the arrow")
}

/// Passes over prompts in order to go on from them; `hook` looks at the last token of each site.
pub(super) fn begin(model: &LanguageModel, prompts: &[Prompt], hook: &mut dyn Hook) -> Result<Begun, ScienceError> {
    let mut cache = model.cache(prompts.len())?;
    let batch = batch(model, prompts, PatchPositions::Last);
    let logits = model.forward(&batch, Some(&mut cache), Some(hook), Logits::Last)?;
    Ok(Begun { cache, logits: logits.expect("logits were asked for") })
}

/// Passes over prompts in order; `hook` looks at the tokens of each site that are `looked_at`.
pub(super) fn look(
    model: &LanguageModel,
    prompts: &[Prompt],
    looked_at: PatchPositions,
    hook: &mut dyn Hook,
) -> Result<(), ScienceError> {
    model.forward(&batch(model, prompts, looked_at), None, Some(hook), Logits::None).map(drop)
}

/// Keeps what `layers` leave in the residual stream at the sites, in their order, of the prompts in certain rows: at the last
/// token of each site, or at all of them.
pub(super) fn capture<'a>(
    layers: &BTreeSet<u32>,
    sites: &[Site],
    positions: PatchPositions,
    prompts: impl Iterator<Item = (usize, &'a Prompt)>,
) -> Result<Capture, ScienceError> {
    let mut by_row = Vec::new();
    for (row, prompt) in prompts {
        let at = sites.iter().map(|site| tokens_of(*site, positions, prompt)).collect::<Result<Vec<_>, _>>()?;
        by_row.push((row, at.concat()));
    }
    Ok(Capture::new(layers.iter().map(|l| HookPoint::hidden(*l as usize)), Tokens::by_row(by_row)))
}

/// The tokens of a site: where answers, the asked one included, are predicted (`x`), or where given ones end (`y`). Never
/// none.
///
/// # Errors
/// [`ScienceError::NoSite`] where the prompt has none: `y` without demonstrations, `s` always.
pub(super) fn tokens_of(site: Site, positions: PatchPositions, prompt: &Prompt) -> Result<Vec<usize>, ScienceError> {
    let all = match site {
        Site::X => prompt.x_sites.as_slice(),
        Site::Y => &prompt.y_sites,
        Site::S => &[],
    };
    match (all, positions) {
        ([], _) => Err(ScienceError::NoSite { site, shots: prompt.series.shots }),
        (all, PatchPositions::All) => Ok(all.to_vec()),
        ([.., last], PatchPositions::Last) => Ok(vec![*last]),
    }
}
