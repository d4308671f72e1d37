//! Task decodability with states and their neighbours from a [`Machine`], in one pass for all layers, sites and tasks.
//!
//! Sequences, votes and standard errors are the CPU's own. States differ from the CPU's by rounding, for sums are taken in
//! another order; of given states the neighbours are the same. So a row is another than the CPU's only where the roundings
//! of two states swap two neighbours whose distances are that close, and then by one sequence for each point that has such.

use super::{decoded, halves, not_finite, places, rows, shared_query, token, with_last_query};
use crate::{
    ScienceError, Sink,
    analysis::{
        decode::{Decoder, Neighbours},
        refused,
    },
    engine::stacked::states::{Place, Reading, Readings, States},
    model::Transformer,
};
use std::{collections::BTreeMap, time::Instant};
use taskvec_kernels::cuda::{analysis::Points, program::Machine};
use taskvec_model::{
    job::Progress,
    metric::Metrics,
    spec::{DataSpec, Site, TdSpec},
};

/// Of activations at a time. All sequences of the paper's model need less than half of it.
const MEMORY: usize = 1 << 30;

/// As [`super::run`], which also does it where there are more sequences than the machine's kernel compares, or nothing to
/// compare.
///
/// # Errors
/// Those of [`super::run`], and the machine's.
pub fn run_on<M: Machine>(
    machine: &M,
    network: &Transformer,
    seed: u64,
    data: &DataSpec,
    td: &TdSpec,
    sink: &mut dyn Sink,
) -> Result<Metrics, ScienceError> {
    let DataSpec::SparseLinear(sparse) = data;
    let total = u64::from(td.samples_per_task) * u64::from(sparse.bases);
    let places = places(network, td);
    if places.is_empty() || !(2..=Points::MOST as u64).contains(&total) {
        return super::run(network, seed, data, td, sink);
    }
    let start = Instant::now();
    let mut batch = decoded(seed, sparse, 0..total);
    let (mut readings, mut order) = (Vec::new(), Vec::new());
    for shared in [false, true] {
        if shared {
            with_last_query(&mut batch, &shared_query(seed, sparse));
        }
        let here: Vec<(u32, Site)> = places.iter().copied().filter(|(_, site)| (*site == Site::S) == shared).collect();
        if here.is_empty() {
            continue;
        }
        let mut tokens = vec![0.0; batch.y.len() * 2 * sparse.channels() as usize];
        batch.write_tokens(&mut tokens);
        let place = |&(layer, site): &(u32, Site)| Place { layer: layer as usize, token: token(site, sparse) };
        readings.push(Reading { tokens, places: here.iter().map(place).collect() });
        order.extend(here);
    }
    let nearest = Decoder::depth(td.k as usize);
    let common = Readings { sequences: batch.len(), nearest, memory: MEMORY };
    let states = States::of(machine, network, &readings, common).map_err(refused)?;
    if !states.finite().map_err(refused)? {
        return Err(not_finite().into());
    }
    let decoder = Decoder::new(&batch.basis, sparse.bases, td.k as usize, halves(seed));
    let neighbours = states.neighbours().map_err(refused)?;
    let decoded = |nearest| decoder.decode_by(&Neighbours::found(nearest));
    let by_place: BTreeMap<_, _> = order.into_iter().zip(neighbours.into_iter().map(decoded)).collect();
    let per_second = total as f64 / start.elapsed().as_secs_f64().max(1e-9);
    // All is done: a wish to stop comes too late.
    sink.progress(Progress { done: total, total, per_second, loss: None });
    Ok(rows(sparse, td, by_place.into_iter()))
}
