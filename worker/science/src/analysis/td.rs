//! Task decodability of a checkpoint: can the latent task be read from its hidden states?
//!
//! For each latent task as many sequences; the states of one layer at one site, pooled over tasks; leave-one-out kNN
//! classification ([`super::decode`]). TD of a task is the fraction of its sequences that are classified correctly. Over
//! all tasks it can be no better, in expectation, than the ideal observer of [`super::baselines`].
//!
//! At layer 0 site `s` has one and the same state for all sequences; ties then decide, which gives chance on average over
//! tasks but not for each of them.

mod on_machine;

pub use on_machine::run_on;

use super::{
    decode::{Decoded, Decoder},
    decoded, in_batches, widen,
};
use crate::{
    ScienceError, Sink,
    data::Sequences,
    hook::HookPoint,
    model::Transformer,
    rng::{Purpose, Stream},
};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::{
    metric::{Metrics, Td},
    spec::{DataSpec, Site, SparseLinear, TdSpec},
};

/// Task decodability at every layer and site that `td` names.
///
/// # Errors
/// [`ScienceError::Stopped`] when the sink asks for it; tensor errors, also where a hidden state is not finite.
pub fn run(
    network: &Transformer,
    seed: u64,
    data: &DataSpec,
    td: &TdSpec,
    sink: &mut dyn Sink,
) -> Result<Metrics, ScienceError> {
    let DataSpec::SparseLinear(data) = data;
    let mut states = States::new(places(network, td));
    let mut basis = Vec::new();
    let query = shared_query(seed, data);
    in_batches(u64::from(td.samples_per_task) * u64::from(data.bases), sink, |indices| {
        let mut batch = decoded(seed, data, indices);
        states.collect(network, &batch, |site| site != Site::S)?;
        with_last_query(&mut batch, &query);
        states.collect(network, &batch, |site| site == Site::S)?;
        basis.extend(batch.basis);
        Ok(())
    })?;
    let decoder = Decoder::new(&basis, data.bases, td.k as usize, halves(seed));
    let width = network.sizes().width;
    Ok(rows(data, td, states.by_place.iter().map(|(place, points)| (*place, decoder.decode(points, width)))))
}

/// Layers and sites that are asked for, in order.
fn places(network: &Transformer, td: &TdSpec) -> BTreeSet<(u32, Site)> {
    let layers = td.layers.resolve(network.sizes().layers as u32);
    layers.into_iter().flat_map(|layer| td.sites.iter().map(move |&site| (layer, site))).collect()
}

/// The rows of what was decoded at each place, by task.
fn rows(data: &SparseLinear, td: &TdSpec, decoded: impl Iterator<Item = ((u32, Site), Vec<Decoded>)>) -> Metrics {
    let rows = decoded.flat_map(|((layer, site), decoded)| {
        data.latent_tasks().into_iter().zip(decoded).map(move |(latent_task, decoded)| Td {
            layer,
            site,
            latent_task,
            shots: data.examples - 1,
            k: td.k,
            n: td.samples_per_task,
            value: decoded.value,
            stderr: decoded.stderr,
        })
    });
    Metrics { td: rows.collect(), ..Metrics::default() }
}

/// The stream of the half-samples behind the standard errors; step 0 of the same purpose gives the sequences.
pub(super) fn halves(seed: u64) -> Stream {
    Stream { seed, purpose: Purpose::Td, step: 1 }
}

/// The index of the token whose state a site means.
fn token(site: Site, data: &SparseLinear) -> usize {
    let last_x = 2 * data.examples as usize - 2;
    match site {
        Site::X | Site::S => last_x,
        Site::Y => last_x - 1,
    }
}

/// The query of site `s`: one x ~ N(0, I), the same for every sequence and checkpoint of a run.
fn shared_query(seed: u64, data: &SparseLinear) -> Vec<f32> {
    let mut query = vec![0.0; data.dim as usize];
    Stream { seed, purpose: Purpose::Query, step: 0 }.at(0).normals(&mut query);
    query.into_iter().map(|q| q as f32).collect()
}

/// Replaces the last x of every sequence.
fn with_last_query(batch: &mut Sequences, query: &[f32]) {
    let row = batch.data.examples as usize * query.len();
    for x in batch.x.chunks_exact_mut(row) {
        x[row - query.len()..].copy_from_slice(query);
    }
}

/// Hidden states, one row of d values after the other, for each layer and site.
struct States {
    by_place: BTreeMap<(u32, Site), Vec<f64>>,
}

impl States {
    fn new(places: BTreeSet<(u32, Site)>) -> Self {
        Self { by_place: places.into_iter().map(|place| (place, Vec::new())).collect() }
    }

    /// Adds the states of a batch at the sites that `wanted` names: one forward pass for all of them and all layers.
    fn collect(
        &mut self,
        network: &Transformer,
        batch: &Sequences,
        wanted: impl Fn(Site) -> bool,
    ) -> Result<(), ScienceError> {
        let mut places: BTreeMap<HookPoint, Vec<(Site, &mut Vec<f64>)>> = BTreeMap::new();
        for (&(layer, site), points) in self.by_place.iter_mut().filter(|((_, site), _)| wanted(*site)) {
            places.entry(HookPoint::hidden(layer as usize)).or_default().push((site, points));
        }
        if places.is_empty() {
            return Ok(());
        }
        let mut read = |point: HookPoint, x: &Tensor| {
            for (site, points) in places.get_mut(&point).into_iter().flatten() {
                points.extend(states_at(x, token(*site, &batch.data))?);
            }
            Ok(None)
        };
        network.forward(&batch.tokens(&Device::Cpu)?, Some(&mut read))?;
        Ok(())
    }
}

/// The states of token `index` in activations (B, T, d): B × d values.
fn states_at(x: &Tensor, index: usize) -> candle_core::Result<Vec<f64>> {
    let values = x.narrow(1, index, 1)?.flatten_all()?.to_vec1::<f32>()?;
    if values.iter().any(|v| !v.is_finite()) {
        return Err(not_finite());
    }
    Ok(widen(&values))
}

fn not_finite() -> candle_core::Error {
    candle_core::Error::Msg("the model's hidden states are not finite".into())
}
