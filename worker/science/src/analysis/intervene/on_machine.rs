//! Activation patching with the model on a [`Machine`], for all pairs at once.
//!
//! Sequences and errors are the CPU's own. What is predicted differs from the CPU's by rounding: sums, those of the means too,
//! which are of f32 here, are taken in another order.

use super::{Errors, Lab, tokens};
use crate::{
    Control, ScienceError, Sink,
    analysis::refused,
    data::Sequences,
    engine::stacked::patching::{Patched, Patching, least_memory},
    model::Transformer,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};
use taskvec_kernels::cuda::program::{Loaded, Machine};
use taskvec_model::{
    job::Progress,
    metric::Metrics,
    spec::{DataSpec, InterventionSpec, PatchMode},
};

/// Bytes that activations may take: as many pairs are patched at a time as fit in.
const MEMORY: usize = 4 << 30;

/// As [`super::run`], which also does it where there is nothing to patch, or those of a single pair would take
/// more than 4 GiB.
///
/// # Errors
/// Those of [`super::run`], and the machine's.
pub fn run_on<M: Machine>(
    machine: &M,
    network: &Transformer,
    seed: u64,
    data: &DataSpec,
    spec: &InterventionSpec,
    sink: &mut dyn Sink,
) -> Result<Metrics, ScienceError> {
    let DataSpec::SparseLinear(sparse) = data;
    let layers = spec.layers.resolve(network.sizes().layers as u32).unwrap_or_default();
    let lab = Lab { network, data: sparse, spec, seed, tokens: tokens(spec, sparse)? };
    let pairs = super::super::pairs(&sparse.latent_tasks(), &spec.pairs)?;
    let of = Patching {
        sequences: spec.samples_per_task as usize,
        tasks: sparse.bases as usize,
        layers: &layers.iter().map(|&layer| layer as usize).collect::<Vec<_>>(),
        tokens: (lab.tokens[0], lab.tokens.len()),
        add: spec.mode == PatchMode::AddMeanDifference,
        pairs: &pairs,
        memory: MEMORY,
    };
    let nothing = layers.is_empty() || pairs.is_empty() || spec.samples_per_task == 0 || spec.replicates == 0;
    if nothing || least_memory(network.sizes(), &of) > of.memory {
        return super::run(network, seed, data, spec, sink);
    }
    let mut patched = Patched::new(machine, network, of).map_err(refused)?;
    let (start, mut metrics) = (Instant::now(), Metrics::default());
    for replicate in 1..=spec.replicates {
        let errors = errors(&mut patched, &lab, &pairs, replicate)?;
        for (&layer, errors) in layers.iter().zip(&errors) {
            metrics.interventions.extend(lab.rows((layer, replicate), &pairs, errors));
        }
        let (done, total) = (u64::from(replicate), u64::from(spec.replicates));
        let per_second = done as f64 / start.elapsed().as_secs_f64().max(1e-9);
        if sink.progress(Progress { done, total, per_second, loss: None }) == Control::Stop && done < total {
            return Err(ScienceError::Stopped);
        }
    }
    Ok(metrics)
}

/// The errors of a replicate at each layer: of the sources as they are, and of each pair.
fn errors<L: Loaded<Error: std::error::Error + Send + Sync + 'static>>(
    patched: &mut Patched<L>,
    lab: &Lab<'_>,
    pairs: &[[usize; 2]],
    replicate: u32,
) -> Result<Vec<Errors>, ScienceError> {
    let n = u64::from(lab.spec.samples_per_task);
    let written = |batch: &Sequences| {
        let mut tokens = vec![0.0; batch.y.len() * 2 * lab.data.channels() as usize];
        batch.write_tokens(&mut tokens);
        tokens
    };
    let means: Vec<f32> = (0..lab.data.bases)
        .flat_map(|basis| written(&lab.sequences(basis as usize, 2 * replicate - 1, 0..n)))
        .collect();
    let named: BTreeSet<usize> = pairs.iter().map(|[source, _]| *source).collect();
    let sources: BTreeMap<_, _> = named.into_iter().map(|s| (s, lab.sequences(s, 2 * replicate, 0..n))).collect();
    let tokens = sources.iter().map(|(s, batch)| (*s, written(batch))).collect();
    let predicted = patched.run(&means, &tokens).map_err(refused)?;
    let error = |source: usize, predicted: &[f32]| Ok(lab.squared_errors(predicted, &sources[&source])? / n as f64);
    let baselines = predicted.baselines.iter().map(|(source, of)| Ok((*source, error(*source, of)?)));
    let baselines: BTreeMap<usize, f64> = baselines.collect::<Result<_, ScienceError>>()?;
    let of_layer = |patched: &Vec<Vec<f32>>| {
        let of_pairs = pairs.iter().zip(patched).map(|([source, _], of)| error(*source, of));
        Ok((baselines.clone(), of_pairs.collect::<Result<_, ScienceError>>()?))
    };
    predicted.patched.iter().map(of_layer).collect()
}
