//! Hidden states of prompts, by layer and site.

use super::{Meter, PASSES, TOKENS, TOKENS_TOGETHER, cuts, pass, total};
use crate::{
    ScienceError,
    hook::{Capture, HookPoint},
    model::language::LanguageModel,
    task::Prompt,
};
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};
use taskvec_model::spec::{PatchPositions, Site};

/// States of prompts: rows of d values for each layer and site.
pub(super) struct States {
    layers: BTreeSet<u32>,
    sites: Vec<Site>,
    positions: PatchPositions,
    points: BTreeMap<(u32, Site), Vec<f64>>,
}

impl States {
    /// One row for each prompt: its last token of each site.
    pub fn new(layers: impl IntoIterator<Item = u32>, sites: &[Site]) -> Self {
        let positions = PatchPositions::Last;
        Self { layers: layers.into_iter().collect(), sites: sites.to_vec(), positions, points: BTreeMap::new() }
    }

    /// The last token of one site, or all of them, one after the other.
    pub fn at(layers: impl IntoIterator<Item = u32>, site: Site, positions: PatchPositions) -> Self {
        Self { positions, ..Self::new(layers, &[site]) }
    }

    /// A hook that keeps what [`Self::add`] takes, of the prompts in certain rows.
    pub fn capture<'a>(&self, prompts: impl Iterator<Item = (usize, &'a Prompt)>) -> Result<Capture, ScienceError> {
        pass::capture(&self.layers, &self.sites, self.positions, prompts)
    }

    /// Adds the states of prompts, one after the other, from passes side by side.
    pub fn look(
        &mut self,
        model: &LanguageModel,
        prompts: &[Prompt],
        meter: &mut Meter<'_>,
    ) -> Result<(), ScienceError> {
        /// Tokens of a pass below which laying out weights for it costs more than waiting.
        const WORTH_A_PASS: usize = 512;
        // A prompt is never cut: so many of the longest may be there at once.
        let longest = prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(0).max(WORTH_A_PASS);
        let most = PASSES.min(TOKENS_TOGETHER / longest).min(total(prompts) / WORTH_A_PASS);
        let passes = rayon::current_num_threads().min(most).max(1);
        for some in cuts(prompts, TOKENS.min(TOKENS_TOGETHER / passes), passes).chunks(passes) {
            let pass = |cut: &Range<usize>| {
                let prompts = &prompts[cut.clone()];
                let mut capture = self.capture(prompts.iter().enumerate())?;
                pass::look(model, prompts, self.positions, &mut capture)?;
                Ok(capture)
            };
            let captured: Vec<Capture> =
                some.par_iter().with_max_len(1).map(pass).collect::<Result<_, ScienceError>>()?;
            for (captured, cut) in captured.into_iter().zip(some) {
                self.add(captured)?;
                meter.add(cut.len())?;
            }
        }
        Ok(())
    }

    /// Adds the states of a pass, whose hook it was.
    pub fn add(&mut self, mut captured: Capture) -> Result<(), ScienceError> {
        for &layer in &self.layers {
            let states = captured.take(HookPoint::hidden(layer as usize))?;
            let (tokens, width) = states.dims2()?;
            let states = states.reshape((tokens / self.sites.len(), self.sites.len(), width))?;
            for (i, &site) in self.sites.iter().enumerate() {
                self.points.entry((layer, site)).or_default().extend(finite(&states.narrow(1, i, 1)?, layer)?);
            }
        }
        Ok(())
    }

    /// The points in another order: first that which came `order[0]`th, and so on.
    pub fn arranged(mut self, order: &[usize]) -> Self {
        for points in self.points.values_mut() {
            let width = points.len() / order.len().max(1);
            *points = order.iter().flat_map(|&i| &points[i * width..(i + 1) * width]).copied().collect();
        }
        self
    }

    /// Layer and site with their points, in order.
    pub fn iter(&self) -> impl Iterator<Item = ((u32, Site), &[f64])> {
        self.points.iter().map(|(place, points)| (*place, points.as_slice()))
    }
}

/// The mean of rows of `width` values.
pub(super) fn mean(points: &[f64], width: usize) -> Vec<f64> {
    let mut mean = vec![0.0; width];
    for row in points.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
    }
    let n = (points.len() / width).max(1) as f64;
    mean.iter_mut().for_each(|m| *m /= n);
    mean
}

/// The values of a tensor, row-major.
fn finite(states: &Tensor, layer: u32) -> Result<Vec<f64>, ScienceError> {
    let values: Vec<f64> = states.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(values),
        false => Err(ScienceError::NotFinite { layer }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Control, Sink, WriteCheckpoint,
        load::{Files, Room},
        task::{Series, Split},
    };
    use taskvec_model::{
        job::{CheckpointRef, Progress, Purpose},
        metric::TrainLoss,
    };

    struct Counting(u64);

    impl Sink for Counting {
        fn progress(&mut self, progress: Progress) -> Control {
            assert!(progress.done > self.0 && progress.total == 300);
            self.0 = progress.done;
            Control::Continue
        }
        fn train_loss(&mut self, _: TrainLoss) {}
        fn checkpoint(
            &mut self,
            _: u64,
            _: Purpose,
            _: &mut WriteCheckpoint<'_>,
        ) -> Result<CheckpointRef, ScienceError> {
            Err(ScienceError::Stopped)
        }
    }

    /// Of many lengths, and many that begin alike.
    fn prompt(i: usize) -> Prompt {
        let tokens: Vec<u32> = (0..12 + i % 17).map(|t| ((t * t + (i % 7) * (t / 5)) % 32) as u32).collect();
        let last = tokens.len() - 1;
        Prompt {
            series: Series { task: 0, split: Split::Test, shots: 1, replicate: 0 },
            index: i as u64,
            text: String::new(),
            tokens,
            answer: String::new(),
            answer_tokens: Vec::new(),
            x_sites: vec![last - 5, last],
            y_sites: vec![last - 3],
            most_generated: 1,
        }
    }

    #[test]
    fn states_have_the_same_bytes_from_any_number_of_passes_side_by_side() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/language/llama");
        let model = Files::find(folder, None).unwrap().load(DType::F32, &[Room::cpu()]).unwrap();
        let prompts: Vec<Prompt> = (0..300).map(prompt).collect();
        let looked = |threads: usize| {
            let mut states = States::new(0..=model.config().layers as u32, &[Site::X, Site::Y]);
            let mut sink = Counting(0);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| states.look(&model, &prompts, &mut Meter::new(&mut sink, 300)).unwrap());
            assert_eq!(sink.0, 300);
            states.points
        };
        let alone = looked(1);
        assert!(alone.values().all(|points| points.len() == 300 * model.config().width));
        for threads in [2, 3, 8] {
            assert_eq!(looked(threads), alone, "{threads} threads");
        }
    }
}
