//! While a machine makes the next steps, the host stores what the last ones have led to.

use crate::{
    common::{Folder, Memory},
    jobs::job,
    on_machines,
    runs::state,
};
use candle_core::Device;
use std::sync::{Arc, Mutex};
use taskvec_kernels::{
    Precision,
    cuda::program::{Loaded, Machine, Program, Region},
};
use taskvec_model::{
    job::{CheckpointRef, JobWork, Progress, Purpose},
    metric::TrainLoss,
    spec::{DataSpec, Decay},
};
use taskvec_science::{
    Control, Executed, Inputs, Member, MemberSink, Models, ScienceError, Sink, WriteCheckpoint, checkpoint,
    engine::stacked::{Run, StackedEngine, StackedError, Together},
    execute, execute_stack_on,
    model::Transformer,
    optim,
};

on_machines!(
    checkpoints_are_stored_while_the_next_steps_are_made_and_hold_the_steps_before,
    nothing_is_begun_for_runs_that_have_ended,
    rows_end_no_stride_and_none_is_lost,
    runs_are_not_read_while_steps_are_under_way,
);

/// What happened, in order.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    /// The machine was told to make so many steps.
    Run(usize),
    /// Run, step, purpose.
    Stored(u64, u64, Purpose),
    Row(u64, u64),
    /// Run, and its last step.
    Ended(u64, Option<u64>),
}

type Log = Arc<Mutex<Vec<Event>>>;

/// A machine that notes when it is told to run.
struct Noting<'m, M> {
    machine: &'m M,
    log: Log,
}

struct Noted<L> {
    loaded: L,
    log: Log,
}

impl<M: Machine> Machine for Noting<'_, M> {
    type Error = M::Error;
    type Loaded = Noted<M::Loaded>;

    fn shared(&self) -> usize {
        self.machine.shared()
    }

    fn load(&self, program: Program) -> Result<Self::Loaded, M::Error> {
        Ok(Noted { loaded: self.machine.load(program)?, log: self.log.clone() })
    }
}

impl<L: Loaded> Loaded for Noted<L> {
    type Error = L::Error;

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<(), L::Error> {
        self.loaded.write(region, bytes)
    }

    fn read(&self, region: Region) -> Result<Vec<u8>, L::Error> {
        self.loaded.read(region)
    }

    fn run(&mut self, times: usize) -> Result<(), L::Error> {
        self.log.lock().unwrap().push(Event::Run(times));
        self.loaded.run(times)
    }
}

/// A sink that notes what it is given, and keeps it.
struct Sunk {
    seed: u64,
    log: Log,
    memory: Arc<Mutex<Memory>>,
    /// Its storage is full when this step comes.
    full_at: Option<u64>,
}

impl Sink for Sunk {
    fn progress(&mut self, progress: Progress) -> Control {
        self.memory.lock().unwrap().progress(progress)
    }

    fn checkpoint(
        &mut self,
        step: u64,
        purpose: Purpose,
        write: &mut WriteCheckpoint<'_>,
    ) -> Result<CheckpointRef, ScienceError> {
        if self.full_at == Some(step) {
            return Err(ScienceError::Sink("full".into()));
        }
        self.log.lock().unwrap().push(Event::Stored(self.seed, step, purpose));
        self.memory.lock().unwrap().checkpoint(step, purpose, write)
    }

    fn train_loss(&mut self, row: TrainLoss) {
        self.log.lock().unwrap().push(Event::Row(self.seed, row.step));
        self.memory.lock().unwrap().train_loss(row);
    }
}

impl MemberSink for Sunk {
    fn ended(self: Box<Self>, how: Result<Executed, ScienceError>) {
        let last = match how {
            Ok(Executed::Finished(_)) => self.memory.lock().unwrap().progress.last().map(|progress| progress.done),
            Ok(Executed::Stopped { at }) => Some(at.step),
            Err(_) => None,
        };
        self.log.lock().unwrap().push(Event::Ended(self.seed, last));
    }
}

/// A job, after how many steps it is to stop, and when its storage is full.
type Given = (JobWork, Option<u64>, Option<u64>);

fn seed_of(work: &JobWork) -> u64 {
    let JobWork::Train { seed, .. } = work else { unreachable!() };
    *seed
}

/// What happened, and what each kept.
fn noted(machine: &impl Machine<Loaded: 'static>, jobs: Vec<Given>) -> (Vec<Event>, Vec<Memory>) {
    let (log, mut memories) = (Log::default(), Vec::new());
    let members = jobs.into_iter().map(|(work, stop_at, full_at)| {
        let memory = Arc::new(Mutex::new(Memory { stop_at, ..Memory::default() }));
        memories.push(memory.clone());
        let sink = Sunk { seed: seed_of(&work), log: log.clone(), memory, full_at };
        Member { work, inputs: Inputs::default(), sink: Box::new(sink) }
    });
    let members = members.collect();
    execute_stack_on(members, &Models::default(), &Noting { machine, log: log.clone() });
    let memories = memories.iter().map(|memory| std::mem::take(&mut *memory.lock().unwrap())).collect();
    (std::mem::take(&mut *log.lock().unwrap()), memories)
}

/// Every event, and for how many steps the machine had orders then.
fn with_steps(events: &[Event]) -> Vec<(u64, Event)> {
    let mut steps = 0;
    let after = |event: &Event| {
        if let Event::Run(times) = event {
            steps += *times as u64;
        }
        (steps, event.clone())
    };
    events.iter().map(after).collect()
}

fn steps_of(work: &JobWork) -> u64 {
    let JobWork::Train { train, .. } = work else { unreachable!() };
    train.steps
}

/// Every bit of a run after each step, made and read one step at a time.
fn step_by_step(machine: &impl Machine, work: &JobWork) -> Vec<Vec<Vec<u32>>> {
    let JobWork::Train { seed, model, data, train, .. } = work else { unreachable!() };
    let DataSpec::SparseLinear(sparse) = data;
    let network = Transformer::init(model, data, *seed, &Device::Cpu).unwrap();
    let (adam, batch) = (optim::adam(&train.optimizer), train.batch as usize);
    let together = Together { adam, batch, precision: Precision::F32, slots: 1 };
    let run = Run { network: &network, moments: None, data: sparse, seed: *seed, step: 0, clip_norm: train.clip_norm };
    let mut engine = StackedEngine::new(machine, &[run], together).unwrap();
    let after = |_| {
        engine.advance(1, |_, step| train.learning_rate(step)).unwrap();
        state(&engine.network(0).unwrap(), &engine.moments(0).unwrap())
    };
    (0..train.steps).map(after).collect()
}

/// Runs of one shape of which one stops early, one diverges, and two go to the end.
fn checkpoints_are_stored_while_the_next_steps_are_made_and_hold_the_steps_before(
    machine: &impl Machine<Loaded: 'static>,
) {
    let mut wild = job(3, 3);
    let JobWork::Train { train, .. } = &mut wild else { unreachable!() };
    (train.optimizer.learning_rate, train.warmup, train.decay) = (1e30, 0, Decay::None);
    let jobs = vec![(job(0, 3), None, None), (job(1, 3), Some(4), None), (wild, None, None), (job(2, 3), None, None)];
    let end = steps_of(&jobs[0].0);
    let (events, memories) = noted(machine, jobs);
    let mut overlapped = 0;
    for (steps, event) in with_steps(&events) {
        match event {
            // What a run begins with, and what all end with.
            Event::Stored(_, 0, _) => assert_eq!(steps, 0),
            Event::Stored(_, step, _) | Event::Row(_, step) | Event::Ended(_, Some(step)) if step == end => {
                assert_eq!(steps, end, "{event:?}");
            }
            Event::Stored(_, step, _) | Event::Row(_, step) | Event::Ended(_, Some(step)) => {
                assert!(steps > step, "{event:?} when {steps} steps were asked for");
                overlapped += 1;
            }
            Event::Run(_) | Event::Ended(_, None) => {}
        }
    }
    // Of two runs that went on rows and weights, and of the one that stopped what it had until then, its state and its end.
    let stored =
        |events: &[Event], seed| events.iter().filter(|e| matches!(e, Event::Stored(s, ..) if *s == seed)).count();
    assert!(overlapped > 2 * 4 && stored(&events, 1) >= 2, "{events:?}");
    let folder = Folder::new();
    for (seed, memory) in (0..2).zip(&memories) {
        let plain = step_by_step(machine, &job(seed, 3));
        for ((step, purpose), bytes) in memory.files.iter().filter(|((step, _), _)| *step > 0) {
            let path = folder.put(&format!("{seed}-{step}-{purpose}"), bytes);
            let kept = checkpoint::read(&path, &Device::Cpu).unwrap();
            let whole = state(&kept.network, &kept.moments);
            assert_eq!(whole.len() < plain[0].len(), *purpose == Purpose::Weights);
            assert!(whole == plain[*step as usize - 1][..whole.len()], "run {seed}, {purpose} of step {step}");
        }
    }
}

/// Whether they are stopped, finished, or their storage fails.
fn nothing_is_begun_for_runs_that_have_ended(machine: &impl Machine<Loaded: 'static>) {
    let asked = |jobs| with_steps(&noted(machine, jobs).0).last().map(|(steps, _)| *steps);
    let end = steps_of(&job(0, 3));
    assert_eq!(asked(vec![(job(0, 3), None, None), (job(1, 3), None, None)]), Some(end));
    // Both hear the wish at the same look; what comes of it is that of the run alone.
    let (events, both) = noted(machine, vec![(job(0, 3), Some(3), None), (job(1, 3), Some(3), None)]);
    let steps = with_steps(&events).last().map(|(steps, _)| *steps);
    let stopped = both[0].progress.last().map(|progress| progress.done);
    assert!(steps == stopped && steps < Some(end), "{events:?}");
    let (_, alone) = noted(machine, vec![(job(1, 3), Some(3), None)]);
    assert!(both[1].files == alone[0].files);
    // The stride that was begun before it was seen that nobody goes on, and no other.
    let first = both[0].files.keys().map(|(step, _)| *step).find(|step| *step > 0).unwrap();
    let (events, _) = noted(machine, vec![(job(0, 3), None, Some(first))]);
    assert_eq!(events.last(), Some(&Event::Ended(0, None)));
    let after = events.iter().rev().take_while(|event| !matches!(event, Event::Stored(..))).collect::<Vec<_>>();
    assert!(after.iter().filter(|event| matches!(event, Event::Run(_))).count() >= 1, "{events:?}");
    assert!(with_steps(&events).last().is_some_and(|(steps, _)| *steps < end), "{events:?}");
}

/// The machine is asked from checkpoint to checkpoint, and each step's row is kept all the same, also those of a run that
/// diverges on the way.
fn rows_end_no_stride_and_none_is_lost(machine: &impl Machine<Loaded: 'static>) {
    let each_step = |seed, learning_rate: Option<f64>| {
        let mut work = job(seed, 3);
        let JobWork::Train { train, .. } = &mut work else { unreachable!() };
        train.log_every = 1;
        if let Some(rate) = learning_rate {
            (train.optimizer.learning_rate, train.warmup, train.decay) = (rate, 0, Decay::None);
        }
        work
    };
    let (good, wild) = (each_step(0, None), each_step(3, Some(20.0)));
    let JobWork::Train { train, checkpoints, .. } = &good else { unreachable!() };
    let analysed = checkpoints.analysis_steps(train.steps);
    let strides: Vec<Event> = analysed.windows(2).map(|pair| Event::Run((pair[1] - pair[0]) as usize)).collect();
    let (events, memories) = noted(machine, vec![(good.clone(), None, None), (wild.clone(), None, None)]);
    let asked: Vec<Event> = events.into_iter().filter(|event| matches!(event, Event::Run(_))).collect();
    assert_eq!(asked, strides);
    let rows = |memory: &Memory| memory.losses.iter().map(|row| row.step).collect::<Vec<_>>();
    assert_eq!(rows(&memories[0]), (1..=train.steps).collect::<Vec<_>>());
    let mut cpu = Memory::default();
    let failed = execute(&wild, &Inputs::default(), &Models::default(), &mut cpu).unwrap_err();
    let ScienceError::Diverged { step, .. } = failed else { panic!("{failed}") };
    assert!(step > 2 && step < train.steps && !analysed.contains(&(step - 1)), "it diverges within a stride: {step}");
    assert_eq!(rows(&memories[1]), rows(&cpu));
    assert_eq!(rows(&cpu), (1..step).collect::<Vec<_>>());
}

fn runs_are_not_read_while_steps_are_under_way(machine: &impl Machine<Loaded: 'static>) {
    let shape = crate::runs::SHAPES[0];
    let runs = crate::runs::runs(shape);
    let mut engine = shape.engine(machine, &runs, 4);
    let rate = |run: usize, _| runs[run].rate;
    let before = engine.snapshot(0, Purpose::Resume).unwrap();
    engine.begin(2, rate).unwrap();
    let refused = [
        engine.begin(1, rate).unwrap_err(),
        engine.network(0).err().unwrap(),
        engine.moments(0).err().unwrap(),
        engine.batch(0).unwrap_err(),
    ];
    assert!(refused.iter().all(|error| matches!(error, StackedError::UnderWay { .. })), "{refused:?}");
    let halves = engine.finish().unwrap();
    assert!(engine.finish().unwrap().iter().all(|advanced| advanced.rows.is_empty()), "nothing was begun");
    let mut whole = shape.engine(machine, &runs, 4);
    assert_eq!(halves, whole.advance(2, rate).unwrap());
    let bits = |engine: &StackedEngine<_>| state(&engine.network(0).unwrap(), &engine.moments(0).unwrap());
    assert!(bits(&engine) == bits(&whole));
    let was = state(&before.network().unwrap(), &before.moments().unwrap().unwrap());
    assert!(was == state(&shape.network(&runs[0]), &shape.engine(machine, &runs, 1).moments(0).unwrap()));
    assert!(was != bits(&whole) && before.serves(Purpose::Weights));
}
