//! Training of S runs of one shape side by side on a [`Machine`]: a GPU, or its emulation in the tests.
//!
//! A step is a [program](taskvec_kernels::cuda::program), made once: every operation takes all runs at a time, and nothing is
//! allocated, copied or waited for within it. The runs' sequences are made on the machine. Their losses and the norms of
//! their gradients go into rings that the host reads every so many steps, when it also says the learning rates of the steps
//! to come.
//!
//! It computes what [`Engine`](super::Engine) computes, to rounding: sums are taken in another order. Runs have nothing in
//! common but the launches: a run has the same bytes alone and among others, and those do not notice if it diverges.

mod block;
mod layout;
mod pass;
pub mod patching;
mod snapshot;
pub mod states;
mod step;
mod writer;

use super::flat;
use crate::{
    course,
    model::{Sizes, Transformer},
    optim::Moments,
};
use layout::Layout;
pub use snapshot::Snapshot;
use std::fmt;
use step::{Places, Shape};
use taskvec_kernels::{
    Adam, Precision,
    cuda::{
        Bytes,
        program::{Cost, Loaded, Machine, Region},
    },
};
use taskvec_model::{job::Purpose, spec::SparseLinear};

/// A run to be trained.
pub struct Run<'a> {
    pub network: &'a Transformer,
    /// In the order of the network's parameters; none of a model that has not begun.
    pub moments: Option<&'a [Moments]>,
    pub data: &'a SparseLinear,
    pub seed: u64,
    /// Updates made.
    pub step: u64,
    pub clip_norm: Option<f64>,
}

/// What all runs have in common, beside the shapes of model and data.
#[derive(Clone, Copy, Debug)]
pub struct Together {
    pub adam: Adam,
    /// Sequences of a step.
    pub batch: usize,
    pub precision: Precision,
    /// The most steps between two looks of the host.
    pub slots: usize,
}

/// What a step gave before its update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Mean squared error.
    pub loss: f64,
    /// The same of predicting 0.
    pub of_zero: f64,
    /// Of the gradient before clipping.
    pub norm: f64,
}

/// Why a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diverged {
    /// The update that was not to be made.
    pub step: u64,
    pub what: &'static str,
}

/// What a run did while all advanced.
#[derive(Clone, Debug, PartialEq)]
pub struct Advanced {
    /// Of the steps that were good, in order.
    pub rows: Vec<Row>,
    /// Now or earlier.
    pub diverged: Option<Diverged>,
}

/// Why runs are not trained together.
#[derive(Debug, thiserror::Error)]
pub enum StackedError {
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("run {run} cannot be trained beside run 0: its {what} is another")]
    Unlike { run: usize, what: &'static str },
    #[error("the model of run {run}, {sizes:?}, does not read the tokens of its data")]
    Unread { run: usize, sizes: Sizes },
    #[error("there is nothing to train: {runs} runs, {batch} sequences of each step, {slots} steps to remember")]
    Nothing { runs: usize, batch: usize, slots: usize },
    #[error("{steps} steps at once are more than the {slots} that are remembered: advance in several calls")]
    TooFar { steps: usize, slots: usize },
    #[error("updates are under way: finish them before {what}")]
    UnderWay { what: &'static str },
    #[error("run {run} {diverged}")]
    Over { run: usize, diverged: Diverged },
    #[error("the machine fails: {0}")]
    Machine(Box<dyn std::error::Error + Send + Sync>),
}

type Result<T> = std::result::Result<T, StackedError>;

/// Runs in training on a machine.
pub struct StackedEngine<L> {
    shape: Shape,
    layout: Layout,
    places: Places,
    loaded: L,
    runs: Vec<State>,
    /// Updates that were begun and not finished.
    under_way: Option<usize>,
}

/// Where a run stands.
#[derive(Clone, Copy)]
enum State {
    /// After so many updates.
    At(u64),
    /// The machine goes on computing something in its place, which nobody looks at.
    Over(Diverged, u64),
}

impl State {
    /// Steps that the machine has made of it.
    fn steps(self) -> u64 {
        match self {
            Self::At(steps) | Self::Over(_, steps) => steps,
        }
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> StackedError {
    StackedError::Machine(Box::new(error))
}

impl<L: Loaded<Error: std::error::Error + Send + Sync + 'static>> StackedEngine<L> {
    /// Runs of one shape of model and data: their parameters, moments, data's numbers, seeds, steps and limits may differ.
    ///
    /// # Errors
    /// Nothing to train, runs of different shapes, models of other data, tensors that are not f32 on the CPU, moments of
    /// another model, and the machine's.
    pub fn new<M: Machine<Loaded = L, Error = L::Error>>(
        machine: &M,
        runs: &[Run<'_>],
        together: Together,
    ) -> Result<Self> {
        let first = match runs.first() {
            Some(first) if together.batch > 0 && together.slots > 0 => first,
            _ => {
                let Together { batch, slots, .. } = together;
                return Err(StackedError::Nothing { runs: runs.len(), batch, slots });
            }
        };
        runs.iter().enumerate().try_for_each(|(i, run)| alike(i, run, first))?;
        let shape = Shape::new(first.network.sizes(), runs.len(), together, machine.shared());
        let (layout, slots) = Layout::new(shape.sizes);
        let sources: Vec<_> = runs.iter().map(|run| step::source(run.data, run.seed)).collect();
        let (program, places) = step::program(&shape, (&layout, &slots), first.data, &sources);
        let loaded = machine.load(program).map_err(failed)?;
        let states = runs.iter().map(|run| State::At(run.step)).collect();
        let mut engine = Self { shape, layout, places, loaded, runs: states, under_way: None };
        engine.prepare(runs)?;
        Ok(engine)
    }

    /// Writes all that the first step reads.
    fn prepare(&mut self, runs: &[Run<'_>]) -> Result<()> {
        let Places { parameters, gradients, moments, step, limits, .. } = self.places;
        // Between the parameters, gradients are zero and stay so.
        self.write(gradients, &vec![0; gradients.bytes()])?;
        for (i, run) in runs.iter().enumerate() {
            let dense = flat(run.network.parameters().iter().map(|(_, t)| t))?;
            self.place(parameters, i, &dense)?;
            let zero = || vec![0.0; dense.len()];
            let dense = match run.moments {
                None => [zero(), zero()],
                Some(moments) => [flat(moments.iter().map(|m| &m.m))?, flat(moments.iter().map(|m| &m.v))?],
            };
            for (place, dense) in moments.into_iter().zip(&dense) {
                self.place(place, i, dense)?;
            }
        }
        let steps: Vec<u8> = runs.iter().flat_map(|run| (run.step + 1).to_le_bytes()).collect();
        self.write(step, &steps)?;
        let limit = |run: &Run<'_>| run.clip_norm.unwrap_or(f64::INFINITY).to_le_bytes();
        self.write(limits, &runs.iter().flat_map(limit).collect::<Vec<u8>>())
    }

    /// Makes `steps` updates of every run that has not diverged. `rate(run, step)` is the learning rate of an update, from 1.
    ///
    /// # Errors
    /// Those of [`Self::begin`] and [`Self::finish`].
    pub fn advance(&mut self, steps: usize, rate: impl Fn(usize, u64) -> f64) -> Result<Vec<Advanced>> {
        self.begin(steps, rate)?;
        self.finish()
    }

    /// The first half of [`Self::advance`]: the machine has its orders, and need not have done anything yet. Until the
    /// second half, runs cannot be read.
    ///
    /// # Errors
    /// More steps than are remembered, steps that were begun earlier and not finished, and the machine's.
    pub fn begin(&mut self, steps: usize, rate: impl Fn(usize, u64) -> f64) -> Result<()> {
        self.at_rest("more are begun")?;
        let slots = self.shape.slots;
        if steps > slots {
            return Err(StackedError::TooFar { steps, slots });
        }
        let mut rates = vec![0.0f64; self.runs.len() * slots];
        for (i, run) in self.runs.iter().enumerate() {
            for step in coming(*run, steps) {
                rates[slot(i, step, slots)] = rate(i, step);
            }
        }
        self.write(self.places.rates, &rates.iter().flat_map(|rate| rate.to_le_bytes()).collect::<Vec<u8>>())?;
        self.loaded.run(steps).map_err(failed)?;
        self.under_way = Some(steps);
        Ok(())
    }

    /// The second half of [`Self::advance`]: waits for the steps that were begun, none where none were.
    ///
    /// # Errors
    /// The machine's, also those of the steps.
    pub fn finish(&mut self) -> Result<Vec<Advanced>> {
        let (steps, slots) = (self.under_way.take().unwrap_or(0), self.shape.slots);
        let [losses, norms] = [self.places.losses, self.places.norms].map(|ring| self.doubles(ring));
        let (losses, norms) = (losses?, norms?);
        let row = |i: usize, step: u64| {
            let at = slot(i, step, slots);
            Row { loss: losses[2 * at], of_zero: losses[2 * at + 1], norm: norms[at] }
        };
        Ok(self.runs.iter_mut().enumerate().map(|(i, run)| judged(run, steps, |step| row(i, step))).collect())
    }

    /// How many there are, those included that have diverged.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// A copy of what a checkpoint of a run holds now.
    ///
    /// # Errors
    /// It has diverged, updates are under way; the machine's.
    pub fn snapshot(&self, run: usize, purpose: Purpose) -> Result<Snapshot> {
        let moments = match purpose {
            Purpose::Weights => None,
            Purpose::Resume => {
                let [m, v] = self.places.moments.map(|place| self.of_run(place, run));
                Some([m?, v?])
            }
        };
        Ok(Snapshot::new(self.shape.sizes, self.of_run(self.places.parameters, run)?, moments))
    }

    /// The model of a run as it is now.
    ///
    /// # Errors
    /// Those of [`Self::snapshot`].
    pub fn network(&self, run: usize) -> Result<Transformer> {
        self.snapshot(run, Purpose::Weights)?.network()
    }

    /// The optimiser's moments of a run, in the order of the model's parameters.
    ///
    /// # Errors
    /// Those of [`Self::snapshot`].
    pub fn moments(&self, run: usize) -> Result<Vec<Moments>> {
        Ok(self.snapshot(run, Purpose::Resume)?.moments()?.unwrap_or_default())
    }

    /// The batch that a run saw last: tokens (B, 2K, C) and y (B, K).
    ///
    /// # Errors
    /// Updates are under way; the machine's.
    pub fn batch(&self, run: usize) -> Result<[Vec<f32>; 2]> {
        self.at_rest("a batch is read")?;
        let ([n, r], channels) = (self.shape.rows(), self.shape.sizes.channels);
        let [tokens, y] = [(self.places.tokens, n * channels), (self.places.y, r)]
            .map(|(place, len)| self.floats(place.behind(run * len).first(len)));
        Ok([tokens?, y?])
    }

    /// # Errors
    /// Updates are under way.
    fn at_rest(&self, what: &'static str) -> Result<()> {
        self.under_way.map_or(Ok(()), |_| Err(StackedError::UnderWay { what }))
    }

    /// A run's bytes of something that is laid out as parameters are.
    fn of_run(&self, place: Region, run: usize) -> Result<Vec<u8>> {
        self.at_rest("a run is read")?;
        if let State::Over(diverged, _) = self.runs[run] {
            return Err(StackedError::Over { run, diverged });
        }
        let stride = self.layout.stride;
        self.loaded.read(place.behind(run * stride).first(stride)).map_err(failed)
    }

    fn place(&mut self, place: Region, run: usize, dense: &[f32]) -> Result<()> {
        if dense.len() != self.layout.count() {
            return Err(StackedError::Unlike { run, what: "number of moments" });
        }
        let stride = self.layout.stride;
        let bytes: Vec<u8> = self.layout.spread(dense).iter().flat_map(|x| x.to_le_bytes()).collect();
        self.write(place.behind(run * stride).first(stride), &bytes)
    }

    fn write(&mut self, place: Region, bytes: &[u8]) -> Result<()> {
        self.loaded.write(place, bytes).map_err(failed)
    }

    fn floats(&self, place: Region) -> Result<Vec<f32>> {
        let bytes = self.loaded.read(place).map_err(failed)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn doubles(&self, place: Region) -> Result<Vec<f64>> {
        let bytes = self.loaded.read(place).map_err(failed)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
    }
}

/// What a step of so many runs takes, without a machine; `shared` is what a block of it may have.
pub fn cost(sizes: Sizes, data: &SparseLinear, runs: usize, together: Together, shared: usize) -> Cost {
    let shape = Shape::new(sizes, runs, together, shared);
    let (layout, slots) = Layout::new(sizes);
    let sources = vec![step::source(data, 0); runs];
    step::program(&shape, (&layout, &slots), data, &sources).0.cost()
}

/// Can a run share launches with the first?
fn alike(i: usize, run: &Run<'_>, first: &Run<'_>) -> Result<()> {
    let of = |data: &SparseLinear| [data.dim, data.rank, data.examples, data.channels()];
    let (sizes, data) = (run.network.sizes(), run.data);
    if sizes != first.network.sizes() {
        return Err(StackedError::Unlike { run: i, what: "model's shape" });
    }
    if of(data) != of(first.data) {
        return Err(StackedError::Unlike { run: i, what: "data's shape" });
    }
    let read = [data.channels() as usize, 2 * data.examples as usize];
    if [sizes.channels, sizes.positions] != read {
        return Err(StackedError::Unread { run: i, sizes });
    }
    Ok(())
}

/// The next steps of a run.
fn coming(run: State, steps: usize) -> std::ops::RangeInclusive<u64> {
    run.steps() + 1..=run.steps() + steps as u64
}

/// Where rings (S, slots) have a step of a run.
fn slot(run: usize, step: u64, slots: usize) -> usize {
    run * slots + (step % slots as u64) as usize
}

/// What the rings say of a run's last steps, and where it stands then.
fn judged(run: &mut State, steps: usize, row: impl Fn(u64) -> Row) -> Advanced {
    let end = run.steps() + steps as u64;
    if let State::Over(diverged, _) = *run {
        *run = State::Over(diverged, end);
        return Advanced { rows: Vec::new(), diverged: Some(diverged) };
    }
    let (mut rows, mut diverged) = (Vec::new(), None);
    for step in coming(*run, steps) {
        let row = row(step);
        let exploded = "loss is over a million times that of predicting 0";
        let gradient = (!row.norm.is_finite()).then_some("gradient is not finite");
        if let Some(what) = course::divergence(row.loss, row.of_zero, exploded).or(gradient) {
            diverged = Some(Diverged { step, what });
            break;
        }
        rows.push(row);
    }
    *run = diverged.map_or(State::At(end), |diverged| State::Over(diverged, end));
    Advanced { rows, diverged }
}

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "diverged at step {}: {}", self.step, self.what)
    }
}
