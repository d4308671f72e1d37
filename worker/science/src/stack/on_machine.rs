//! Runs of one shape in the memory of a machine: see [`crate::engine::stacked`].

use super::{Crew, Made, Muster};
use crate::{
    ScienceError, Sink,
    course::State,
    engine::{
        factors,
        stacked::{Advanced, Diverged, Run, Snapshot, StackedEngine, StackedError, Together},
    },
    optim,
    train::{Segment, Start},
};
use taskvec_kernels::cuda::program::{Loaded, Machine};
use taskvec_model::{
    job::{CheckpointRef, Purpose},
    spec::DataSpec,
};

/// Updates between two looks of the host: a tenth of a second of a model that takes a millisecond each.
const SLOTS: usize = 100;

/// A crew on this machine. All segments have one shape and one optimiser but for its rates, as a
/// [pack key](taskvec_model::pack::PackKey) says.
pub(super) fn muster<M: Machine<Loaded: 'static>>(machine: &M) -> Box<Muster<'_>> {
    Box::new(|starts| {
        let train = starts[0].0.train;
        let (adam, precision) = (optim::adam(&train.optimizer), factors(train.precision));
        let together = Together { adam, batch: train.batch as usize, precision, slots: SLOTS };
        let runs: Vec<Run<'_>> = starts.iter().map(|(segment, start)| run(segment, start)).collect();
        let engine = StackedEngine::new(machine, &runs, together)?;
        let aboard = starts.iter().enumerate().map(|(place, (segment, start))| Aboard {
            segment: *segment,
            place,
            step: start.step,
            last_loss: None,
            remembered: None,
        });
        Ok(Box::new(OnMachine { engine, aboard: aboard.collect(), begun: Ok(()) }))
    })
}

fn run<'a>(segment: &Segment<'a>, start: &'a Start) -> Run<'a> {
    let DataSpec::SparseLinear(data) = segment.data;
    Run {
        network: &start.network,
        moments: start.moments.as_deref(),
        data,
        seed: segment.seed,
        step: start.step,
        clip_norm: segment.train.clip_norm,
    }
}

/// Runs that are still wanted, of those that the engine advances: it goes on with the others, and nobody looks.
struct OnMachine<'a, L> {
    engine: StackedEngine<L>,
    aboard: Vec<Aboard<'a>>,
    /// Could the last stride be begun?
    begun: Result<(), StackedError>,
}

struct Aboard<'a> {
    segment: Segment<'a>,
    /// In the engine.
    place: usize,
    /// Updates made.
    step: u64,
    last_loss: Option<f64>,
    /// As it was before the stride that is under way.
    remembered: Option<Snapshot>,
}

impl Aboard<'_> {
    fn made(&mut self, advanced: &Advanced) -> Made {
        self.step += advanced.rows.len() as u64;
        // In the precision of the model.
        let losses: Vec<f64> = advanced.rows.iter().map(|row| f64::from(row.loss as f32)).collect();
        self.last_loss = losses.last().copied().or(self.last_loss);
        let failed = advanced.diverged.map(|Diverged { step, what }| ScienceError::Diverged {
            step,
            what,
            last_loss: self.last_loss,
        });
        Made { losses, failed }
    }
}

impl<L: Loaded<Error: std::error::Error + Send + Sync + 'static>> Crew for OnMachine<'_, L> {
    fn stride(&self) -> u64 {
        SLOTS as u64
    }

    fn remember(&mut self, place: usize, purpose: Purpose) -> Result<(), ScienceError> {
        let run = &mut self.aboard[place];
        run.remembered = Some(self.engine.snapshot(run.place, purpose)?);
        Ok(())
    }

    fn begin(&mut self, updates: u64) {
        // Those that left keep the rate of another: what becomes of them does not matter.
        let mut rates: Vec<Option<Segment<'_>>> = vec![None; self.engine.runs()];
        self.aboard.iter().for_each(|run| rates[run.place] = Some(run.segment));
        let rate = |place: usize, step| rates[place].map_or(0.0, |segment| segment.train.learning_rate(step));
        self.begun = self.engine.begin(updates as usize, rate);
    }

    fn finish(&mut self) -> Vec<Made> {
        self.aboard.iter_mut().for_each(|run| run.remembered = None);
        let begun = std::mem::replace(&mut self.begun, Ok(()));
        match begun.and_then(|()| self.engine.finish()) {
            Ok(advanced) => self.aboard.iter_mut().map(|run| run.made(&advanced[run.place])).collect(),
            Err(error) => {
                let why = error.to_string();
                let failed = |_| Made { losses: Vec::new(), failed: Some(ScienceError::Stack(why.clone())) };
                self.aboard.iter().map(failed).collect()
            }
        }
    }

    fn state(&self, place: usize) -> Box<dyn State + '_> {
        Box::new(Seen { engine: &self.engine, run: &self.aboard[place] })
    }

    fn remove(&mut self, place: usize) {
        self.aboard.remove(place);
    }
}

/// A run as it is between two strides.
struct Seen<'a, L> {
    engine: &'a StackedEngine<L>,
    run: &'a Aboard<'a>,
}

impl<L: Loaded<Error: std::error::Error + Send + Sync + 'static>> State for Seen<'_, L> {
    fn step(&self) -> u64 {
        self.run.step
    }

    fn learning_rate(&self, step: u64) -> f64 {
        self.run.segment.train.learning_rate(step)
    }

    fn save(&self, purpose: Purpose, sink: &mut dyn Sink) -> Result<CheckpointRef, ScienceError> {
        let now;
        let snapshot = match self.run.remembered.as_ref().filter(|snapshot| snapshot.serves(purpose)) {
            Some(remembered) => remembered,
            None => {
                now = self.engine.snapshot(self.run.place, purpose)?;
                &now
            }
        };
        let network = snapshot.network()?;
        let moments = match purpose {
            Purpose::Weights => None,
            Purpose::Resume => snapshot.moments()?,
        };
        self.run.segment.save(self.run.step, (&network, moments.as_deref()), purpose, sink)
    }
}

impl From<StackedError> for ScienceError {
    fn from(error: StackedError) -> Self {
        match error {
            StackedError::Tensor(error) => error.into(),
            other => Self::Stack(other.to_string()),
        }
    }
}
