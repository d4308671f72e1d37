//! Activation patching of a synthetic model with mean states, for every source and target that is asked for
//! (arXiv 2412.12276, section 4).
//!
//! The mean of a latent task is taken at each token of the site by itself, over sequences of that basis; sequences of the
//! source basis, others than those, are predicted as they are (`baseline`) and with the state after one block, at each
//! patched token, moved towards the target: replaced by its mean there, or with the difference of that mean to the mean
//! over all bases added. Replacing at x erases the query itself; adding leaves it.
//!
//! The metric is the squared error: over all positions where all tokens of the site are patched, at the last one where only
//! the last is, since no other prediction can change then.

mod on_machine;

pub use on_machine::run_on;

use super::{in_batches, widen};
use crate::{
    ScienceError, Sink,
    data::{Bases, Sequences, generate},
    hook::HookPoint,
    model::Transformer,
    rng::{Purpose, Stream},
};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, btree_map::Entry};
use taskvec_model::{
    metric::{IclMetric, Intervention, Metrics},
    spec::{DataSpec, InterventionSpec, PatchMode, PatchPositions, Site, SparseLinear},
};

/// Patches a model at every layer, pair and replicate that `spec` names.
///
/// # Errors
/// [`ScienceError::Stopped`] when the sink asks for it; a pair that names a task that is not there; tensor errors, also where
/// a state or a prediction is not finite.
pub fn run(
    network: &Transformer,
    seed: u64,
    data: &DataSpec,
    spec: &InterventionSpec,
    sink: &mut dyn Sink,
) -> Result<Metrics, ScienceError> {
    let DataSpec::SparseLinear(data) = data;
    let layers = spec.layers.resolve(network.sizes().layers as u32).unwrap_or_default();
    let lab = Lab { network, data, spec, seed, tokens: tokens(spec, data)? };
    let pairs = super::pairs(&data.latent_tasks(), &spec.pairs)?;
    let mut metrics = Metrics::default();
    for replicate in 1..=spec.replicates {
        for &layer in &layers {
            let means = lab.means(layer, replicate, sink)?;
            let errors = lab.errors(layer, &pairs, replicate, &means, sink)?;
            metrics.interventions.extend(lab.rows((layer, replicate), &pairs, &errors));
        }
    }
    Ok(metrics)
}

/// The patched tokens; never none.
fn tokens(spec: &InterventionSpec, data: &SparseLinear) -> Result<Vec<usize>, ScienceError> {
    let examples = data.examples as usize;
    let all: Vec<usize> = match spec.site {
        Site::X => (0..examples).map(|k| 2 * k).collect(),
        // The answer after the last query comes too late to matter.
        Site::Y => (0..examples - 1).map(|k| 2 * k + 1).collect(),
        // A query of its own, not a place of its own.
        Site::S => Vec::new(),
    };
    match (all.last().copied(), spec.positions) {
        (None, _) => Err(ScienceError::NoSite { site: spec.site, shots: data.examples - 1 }),
        (_, PatchPositions::All) => Ok(all),
        (Some(last), PatchPositions::Last) => Ok(vec![last]),
    }
}

struct Lab<'a> {
    network: &'a Transformer,
    data: &'a SparseLinear,
    spec: &'a InterventionSpec,
    seed: u64,
    tokens: Vec<usize>,
}

/// Of the sources as they are, by source, and of each pair.
type Errors = (BTreeMap<usize, f64>, Vec<f64>);

impl Lab<'_> {
    fn rows(
        &self,
        (layer, replicate): (u32, u32),
        pairs: &[[usize; 2]],
        (baselines, patched): &Errors,
    ) -> impl Iterator<Item = Intervention> {
        let (spec, names) = (self.spec, self.data.latent_tasks());
        pairs.iter().zip(patched).map(move |(&[source, target], &patched)| Intervention {
            layer,
            site: spec.site,
            positions: spec.positions,
            mode: spec.mode,
            source_task: names[source].clone(),
            target_task: names[target].clone(),
            shots: self.data.examples - 1,
            metric: IclMetric::Mse,
            baseline: baselines[&source],
            patched,
            replicate,
            n: spec.samples_per_task,
        })
    }

    /// Sequences of one basis: draw 2r − 1 for the means of replicate r, 2r for its effects.
    fn sequences(&self, basis: usize, draw: u32, indices: std::ops::Range<u64>) -> Sequences {
        let stream = Stream { seed: self.seed, purpose: Purpose::Intervene, step: u64::from(draw) };
        let apart = basis as u64 * u64::from(self.spec.samples_per_task);
        generate(self.data, stream, apart + indices.start..apart + indices.end, Bases::Fixed(basis as u32))
    }

    /// The mean state of each basis after `layer`, (P, d) for the P patched tokens.
    fn means(&self, layer: u32, replicate: u32, sink: &mut dyn Sink) -> Result<Vec<Tensor>, ScienceError> {
        let mean = |basis: u32| -> Result<Tensor, ScienceError> {
            let mut sum: Option<Tensor> = None;
            in_batches(u64::from(self.spec.samples_per_task), sink, |indices| {
                let batch = self.sequences(basis as usize, 2 * replicate - 1, indices);
                let mut read = |point: HookPoint, x: &Tensor| {
                    if point == HookPoint::hidden(layer as usize) {
                        let states = self.chosen(x)?.to_dtype(DType::F64)?.sum(0)?;
                        sum = Some(match sum.take() {
                            Some(sum) => (sum + states)?,
                            None => states,
                        });
                    }
                    Ok(None)
                };
                self.network.forward(&batch.tokens(&Device::Cpu)?, Some(&mut read))?;
                Ok(())
            })?;
            let sum = sum.ok_or_else(|| candle_core::Error::Msg(format!("no state after layer {layer} was seen")))?;
            Ok((sum / f64::from(self.spec.samples_per_task))?)
        };
        (0..self.data.bases).map(mean).collect()
    }

    /// The patched tokens of (B, T, d): (B, P, d).
    fn chosen(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let tokens: Vec<u32> = self.tokens.iter().map(|&t| t as u32).collect();
        x.index_select(&Tensor::new(tokens, x.device())?, 1)
    }

    fn errors(
        &self,
        layer: u32,
        pairs: &[[usize; 2]],
        replicate: u32,
        means: &[Tensor],
        sink: &mut dyn Sink,
    ) -> Result<Errors, ScienceError> {
        let n = u64::from(self.spec.samples_per_task);
        let global = (means.iter().skip(1).try_fold(means[0].clone(), |sum, m| sum + m)? / means.len() as f64)?;
        let mut error = |source: usize, target: Option<usize>| -> Result<f64, ScienceError> {
            let mut sum = 0.0;
            in_batches(n, sink, |indices| {
                let batch = self.sequences(source, 2 * replicate, indices);
                let mut patch = |point: HookPoint, x: &Tensor| match target {
                    Some(target) if point == HookPoint::hidden(layer as usize) => {
                        self.patched(x, &means[target], &global).map(Some)
                    }
                    _ => Ok(None),
                };
                let predicted = self.network.forward(&batch.tokens(&Device::Cpu)?, Some(&mut patch))?;
                sum += self.squared_errors(&predicted.flatten_all()?.to_vec1()?, &batch)?;
                Ok(())
            })?;
            Ok(sum / n as f64)
        };
        let mut baselines = BTreeMap::new();
        for &[source, _] in pairs {
            if let Entry::Vacant(entry) = baselines.entry(source) {
                entry.insert(error(source, None)?);
            }
        }
        let patched = pairs.iter().map(|&[source, target]| error(source, Some(target))).collect::<Result<_, _>>()?;
        Ok((baselines, patched))
    }

    /// Activations (B, T, d) with the patched tokens moved towards a target.
    fn patched(&self, x: &Tensor, mean: &Tensor, global: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, d) = x.dims3()?;
        let out = x.copy()?;
        for (i, &token) in self.tokens.iter().enumerate() {
            let new = match self.spec.mode {
                PatchMode::Replace => mean.narrow(0, i, 1)?,
                PatchMode::AddMeanDifference => (mean.narrow(0, i, 1)? - global.narrow(0, i, 1)?)?,
            };
            let new = new.to_dtype(x.dtype())?.unsqueeze(0)?.broadcast_as((b, 1, d))?;
            let new = match self.spec.mode {
                PatchMode::Replace => new.contiguous()?,
                PatchMode::AddMeanDifference => (x.narrow(1, token, 1)? + new)?,
            };
            debug_assert!(token < t);
            out.slice_set(&new, 1, token)?;
        }
        Ok(out)
    }

    /// Summed over sequences: the mean over positions, or the error at the last one.
    fn squared_errors(&self, predicted: &[f32], batch: &Sequences) -> Result<f64, ScienceError> {
        let examples = self.data.examples as usize;
        if predicted.iter().any(|p| !p.is_finite()) {
            return Err(candle_core::Error::Msg("the model's predictions are not finite".into()).into());
        }
        let errors: Vec<f64> = widen(predicted).iter().zip(widen(&batch.y)).map(|(p, y)| (p - y) * (p - y)).collect();
        let of = |row: &[f64]| match self.spec.positions {
            PatchPositions::All => row.iter().sum::<f64>() / examples as f64,
            PatchPositions::Last => row[examples - 1],
        };
        Ok(errors.chunks_exact(examples).map(of).sum())
    }
}
