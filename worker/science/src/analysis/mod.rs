//! What is measured on a checkpoint ([`icl`], [`td`]), and on the data alone ([`baselines`], with the ideal observer).
//!
//! Numbers do not depend on the number of threads: work is split by sequence, point or layer and put together in order.

pub mod baselines;
pub mod decode;
pub mod estimators;
pub mod icl;
pub mod intervene;
pub mod knn;
mod linalg;
pub mod natural;
pub mod stats;
pub mod td;

use crate::{
    Control, ScienceError, Sink,
    data::{Bases, Sequences, generate},
    engine::stacked::StackedError,
    rng::{Purpose, Stream},
};
use std::{ops::Range, time::Instant};
use taskvec_model::{
    job::Progress,
    spec::{PatchPairs, SparseLinear},
};

/// Sequences that go through a model, or a set of estimators, together. Between two batches a job can be stopped.
const BATCH: usize = 100;

/// Held-out sequences, drawn from the mixture: the same for the baselines and every checkpoint of a run.
fn held_out(seed: u64, data: &SparseLinear, indices: Range<u64>) -> Sequences {
    generate(data, Stream { seed, purpose: Purpose::Evaluate, step: 0 }, indices, Bases::Drawn)
}

/// Sequences for task decodability, the bases in turn: the same for every checkpoint of a run, and for the ideal observer.
fn decoded(seed: u64, data: &SparseLinear, indices: Range<u64>) -> Sequences {
    generate(data, Stream { seed, purpose: Purpose::Td, step: 0 }, indices, Bases::InTurn)
}

/// Applies `part` to `total` items, [`BATCH`] at a time, reporting to the sink after each batch.
///
/// # Errors
/// Those of `part`, and [`ScienceError::Stopped`] when the sink asks for it.
fn in_batches(
    total: u64,
    sink: &mut dyn Sink,
    mut part: impl FnMut(Range<u64>) -> Result<(), ScienceError>,
) -> Result<(), ScienceError> {
    let start = Instant::now();
    for from in (0..total).step_by(BATCH) {
        let done = (from + BATCH as u64).min(total);
        part(from..done)?;
        let per_second = done as f64 / start.elapsed().as_secs_f64().max(1e-9);
        if sink.progress(Progress { done, total, per_second, loss: None }) == Control::Stop && done < total {
            return Err(ScienceError::Stopped);
        }
    }
    Ok(())
}

/// Source and target of each pair of an intervention, as places among the tasks.
fn pairs(names: &[String], pairs: &PatchPairs) -> Result<Vec<[usize; 2]>, ScienceError> {
    let place = |name: &String| {
        let unknown = || ScienceError::UnknownTask { name: name.clone(), known: names.to_vec() };
        names.iter().position(|n| n == name).ok_or_else(unknown)
    };
    pairs.resolve(names).iter().map(|[source, target]| Ok([place(source)?, place(target)?])).collect()
}

/// f32 as f64, without loss.
fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Why a machine gave no states.
fn refused(error: StackedError) -> ScienceError {
    match error {
        StackedError::Tensor(error) => error.into(),
        other => ScienceError::States(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_asks_for_the_right_task_and_for_null() {
        let names: Vec<String> = ["A", "B", "Null"].map(str::to_owned).to_vec();
        assert_eq!(pairs(&names, &PatchPairs::Paper).unwrap(), [[0, 0], [0, 2], [1, 1], [1, 2]]);
        let unknown = PatchPairs::List(vec![["A".into(), "C".into()]]);
        let refused = pairs(&names, &unknown).unwrap_err().to_string();
        assert_eq!(refused, "there is no latent task `C`; there are A, B, Null");
    }
}
