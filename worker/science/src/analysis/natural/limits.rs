//! What a job may ask for. A sweep is checked for it when it is planned, but where the tasks are those of a file, their number is
//! known here first.

use super::measure::Asked;
use crate::{ScienceError, analysis::decode::Decoder};
use taskvec_model::job::{MAX_ROWS, TdPart};

/// # Errors
/// [`ScienceError::TooManyRows`]; `of` is what they are a product of.
pub(super) fn rows(rows: u64, of: &'static str) -> Result<(), ScienceError> {
    if rows > MAX_ROWS { Err(ScienceError::TooManyRows { rows, of, most: MAX_ROWS }) } else { Ok(()) }
}

/// Can so many `tasks` be measured in a model of so many `layers`, whose states have `width` elements, where there are
/// `memory` bytes?
///
/// # Errors
/// [`ScienceError::TooManyRows`], [`ScienceError::NoRoomForStates`].
pub(super) fn measurement(
    asked: &Asked<'_>,
    tasks: usize,
    layers: u32,
    width: usize,
    memory: u64,
) -> Result<(), ScienceError> {
    let (tasks, width) = (tasks as u64, width as u64);
    let spaces = |td: &TdPart| (td.layers.resolve(layers).len() * td.sites.len()) as u64;
    let of_td = asked.td.map_or(0, spaces);
    let of_lens = asked.lens.map_or(0, |lens| lens.layers.resolve(layers).len() as u64);
    let pairs = if asked.td.is_some_and(|td| td.pairs) { tasks * tasks.saturating_sub(1) / 2 } else { 0 };
    let single = tasks * (of_td + of_lens + u64::from(asked.icl.is_some()));
    rows(single.saturating_add(of_td.saturating_mul(pairs)), "layers × sites × tasks and pairs of tasks")?;
    let Some(td) = asked.td else { return Ok(()) };
    let points = tasks.saturating_mul(td.samples_per_task.into());
    let needed = points.saturating_mul(of_td * width * size_of::<f64>() as u64 + neighbours(td, points));
    if needed > memory { Err(ScienceError::NoRoomForStates { points, needed, there: memory }) } else { Ok(()) }
}

/// Bytes that the neighbours of one point take, of one space at a time.
fn neighbours(td: &TdPart, points: u64) -> u64 {
    let known = if td.pairs { points } else { points.min(Decoder::depth(td.k as usize) as u64) };
    known.saturating_mul(size_of::<u32>() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskvec_model::{
        job::LensPart,
        spec::{Family, Instruction, Layers, NaturalSpec, Site, Template},
    };

    /// Of a model with 3 layers and the embedding.
    fn checked(tasks: usize, pairs: bool, memory: u64) -> Result<(), String> {
        let td = TdPart { layers: Layers::All, sites: vec![Site::X, Site::Y], k: 10, samples_per_task: 100, pairs };
        let lens = LensPart { layers: Layers::All, samples_per_task: 10 };
        let (family, template, instruction) = (Family::Bitwise { digits: 2 }, Template::default(), Instruction::None);
        let data = NaturalSpec { family, shots: vec![1], tasks: Vec::new(), template, instruction };
        let asked = Asked { seed: 0, data: &data, shots: 1, icl: Some(10), td: Some(&td), lens: Some(&lens) };
        measurement(&asked, tasks, 3, 16, memory).map_err(|e| e.to_string())
    }

    #[test]
    fn all_results_of_a_job_fit_into_a_message() {
        // Each task has 8 of TD, 4 of the lens and one of accuracy; each pair 8.
        let (most, everything) = (MAX_ROWS as usize / 13, u64::MAX);
        assert_eq!(checked(most, false, everything), Ok(()));
        let message =
            "the job would give 200005 results (layers × sites × tasks and pairs of tasks); one job may give 200000";
        assert!(checked(most + 1, false, everything).unwrap_err().starts_with(message));
        assert_eq!(checked(222, true, everything), Ok(()));
        assert!(checked(223, true, everything).unwrap_err().contains("give 200923 results"));
    }

    #[test]
    fn states_fit_into_memory() {
        // 300 points of 8 spaces of 16 numbers, with 80 neighbours each, or with all.
        for (pairs, neighbours) in [(false, 80), (true, 300)] {
            let needed = 300 * (8 * 16 * 8 + neighbours * 4);
            assert_eq!(checked(3, pairs, needed), Ok(()));
            assert!(checked(3, pairs, needed - 1).unwrap_err().contains("the states of 300 prompts"));
        }
    }
}
