//! Jobs of training, from their work to their checkpoints, on a machine.

use crate::{common, on_machines};
use candle_core::Device;
use std::sync::{Arc, Mutex};
use taskvec_kernels::cuda::program::Machine;
use taskvec_model::{
    job::{CheckpointRef, JobWork, Progress, Purpose, Subject},
    metric::TrainLoss,
    spec::{At, Decay, InterventionSpec, Layers, PatchLayers, PatchMode, PatchPairs, PatchPositions, Site, TdSpec},
};
use taskvec_science::{
    Control, Executed, Inputs, Member, MemberSink, Models, ScienceError, Sink, WriteCheckpoint,
    analysis::{intervene, td},
    checkpoint, execute, execute_stack_on,
};

on_machines!(
    jobs_train_on_a_machine_as_on_a_cpu,
    checkpoints_are_analysed_on_a_machine,
    a_job_that_stops_goes_on_from_its_state_and_one_that_diverges_fails_alone
);

const STEPS: u64 = 12;

#[derive(Default)]
struct Seen {
    memory: common::Memory,
    how: Option<Result<Executed, ScienceError>>,
}

#[derive(Clone, Default)]
struct Watched(Arc<Mutex<Seen>>);

impl Sink for Watched {
    fn progress(&mut self, progress: Progress) -> Control {
        self.0.lock().unwrap().memory.progress(progress)
    }

    fn checkpoint(
        &mut self,
        step: u64,
        purpose: Purpose,
        write: &mut WriteCheckpoint<'_>,
    ) -> Result<CheckpointRef, ScienceError> {
        self.0.lock().unwrap().memory.checkpoint(step, purpose, write)
    }

    fn train_loss(&mut self, row: TrainLoss) {
        self.0.lock().unwrap().memory.train_loss(row);
    }
}

impl MemberSink for Watched {
    fn ended(self: Box<Self>, how: Result<Executed, ScienceError>) {
        assert!(self.0.lock().unwrap().how.replace(how).is_none(), "it ended twice");
    }
}

pub fn job(seed: u64, batch: u32) -> JobWork {
    let (mut model, data, mut train) = (common::model(), common::data(), common::train(STEPS));
    (model.layers, model.width, model.heads) = (1, 8, 2);
    (train.batch, train.log_every) = (batch, 5);
    train.optimizer.epsilon = crate::runs::EPSILON;
    train.optimizer.learning_rate = 1e-3 * (seed + 1) as f64;
    JobWork::Train { seed, model, data, train, checkpoints: common::checkpoints(), from: 0, to: STEPS }
}

fn on(machine: &impl Machine<Loaded: 'static>, jobs: Vec<(JobWork, Inputs, Option<u64>)>) -> Vec<Seen> {
    let mut watched = Vec::new();
    let members = jobs.into_iter().map(|(work, inputs, stop_at)| {
        let sink = Watched::default();
        sink.0.lock().unwrap().memory.stop_at = stop_at;
        watched.push(sink.clone());
        Member { work, inputs, sink: Box::new(sink) }
    });
    execute_stack_on(members.collect(), &Models::default(), machine);
    watched.iter().map(|sink| std::mem::take(&mut *sink.0.lock().unwrap())).collect()
}

fn fresh(work: JobWork) -> (JobWork, Inputs, Option<u64>) {
    (work, Inputs::default(), None)
}

fn jobs_train_on_a_machine_as_on_a_cpu(machine: &impl Machine<Loaded: 'static>) {
    // The last has another shape: it has its turn by itself.
    let jobs = || [job(0, 3), job(1, 3), job(2, 5)];
    let seen = on(machine, jobs().map(fresh).to_vec());
    for (work, seen) in jobs().iter().zip(&seen) {
        assert!(matches!(seen.how, Some(Ok(Executed::Finished(_)))), "{:?}", seen.how);
        let mut cpu = common::Memory::default();
        execute(work, &Inputs::default(), &Models::default(), &mut cpu).unwrap();
        assert_eq!(seen.memory.files.keys().collect::<Vec<_>>(), cpu.files.keys().collect::<Vec<_>>());
        assert_eq!(seen.memory.losses.len(), cpu.losses.len());
        for (ours, theirs) in seen.memory.losses.iter().zip(&cpu.losses) {
            assert_eq!((ours.step, ours.learning_rate), (theirs.step, theirs.learning_rate));
            assert!(
                (ours.loss / theirs.loss - 1.0).abs() < 1e-5,
                "step {}: {} and {}",
                ours.step,
                ours.loss,
                theirs.loss
            );
        }
        let last = seen.memory.progress.last().unwrap();
        assert_eq!((last.done, last.total), (STEPS, STEPS));
    }
}

fn checkpoints_are_analysed_on_a_machine(machine: &impl Machine<Loaded: 'static>) {
    let JobWork::Train { seed, model, data, .. } = job(4, 3) else { unreachable!() };
    let trained = on(machine, vec![fresh(job(4, 3))]).remove(0).memory.files;
    let folder = common::Folder::new();
    let weights = Some(folder.put("weights", &trained[&(STEPS, Purpose::Weights)]));
    let network = checkpoint::read(weights.as_deref().unwrap(), &Device::Cpu).unwrap().network;
    let spec = TdSpec { layers: Layers::All, sites: Site::ALL.to_vec(), k: 3, samples_per_task: 11, at: At::All };
    let decoded = td::run_on(machine, &network, seed, &data, &spec, &mut common::Memory::default()).unwrap();
    let td = JobWork::Td { seed, model: model.clone(), data: data.clone(), td: spec };
    let spec = patching();
    let patched = intervene::run_on(machine, &network, seed, &data, &spec, &mut common::Memory::default()).unwrap();
    let patch = JobWork::Intervene { seed, subject: Subject::Synthetic { model, data }, spec };
    let given = |work: &JobWork| (work.clone(), Inputs { resume: None, weights: weights.clone() }, None);
    // Beside a job that is not given what it needs, and one of training.
    let seen = on(machine, vec![fresh(td.clone()), given(&td), given(&patch), fresh(job(4, 3))]);
    assert!(matches!(seen[0].how, Some(Err(ScienceError::MissingInput(Purpose::Weights)))), "{:?}", seen[0].how);
    for (seen, direct, rows) in [(&seen[1], &decoded, 2 * 3 * 2), (&seen[2], &patched, 4)] {
        let Some(Ok(Executed::Finished(metrics))) = &seen.how else { panic!("{:?}", seen.how) };
        assert_eq!((metrics.rows(), metrics), (rows, direct));
    }
    assert!(seen[3].memory.files == trained);
}

fn patching() -> InterventionSpec {
    InterventionSpec {
        at: At::All,
        layers: PatchLayers::All,
        site: Site::Y,
        positions: PatchPositions::All,
        mode: PatchMode::Replace,
        pairs: PatchPairs::Matrix,
        shots: Vec::new(),
        samples_per_task: 3,
        replicates: 1,
    }
}

fn a_job_that_stops_goes_on_from_its_state_and_one_that_diverges_fails_alone(machine: &impl Machine<Loaded: 'static>) {
    let mut wild = job(1, 3);
    let JobWork::Train { train, .. } = &mut wild else { unreachable!() };
    (train.optimizer.learning_rate, train.warmup, train.decay) = (1e30, 0, Decay::None);
    let stopped = (job(0, 3), Inputs::default(), Some(4));
    let seen = on(machine, vec![stopped, fresh(wild), fresh(job(2, 3))]);
    let Some(Ok(Executed::Stopped { at })) = &seen[0].how else { panic!("{:?}", seen[0].how) };
    assert!(at.purpose == Purpose::Resume && (4..STEPS).contains(&at.step), "{at:?}");
    assert!(matches!(&seen[1].how, Some(Err(ScienceError::Diverged { .. }))), "{:?}", seen[1].how);
    let alone = |work| on(machine, vec![fresh(work)]).remove(0).memory.files;
    assert!(seen[2].memory.files == alone(job(2, 3)), "beside others as alone");

    let folder = common::Folder::new();
    let resume = Some(folder.put("state", &seen[0].memory.files[&(at.step, Purpose::Resume)]));
    let rest = on(machine, vec![(job(0, 3), Inputs { resume, weights: None }, None)]);
    let whole = alone(job(0, 3));
    let end = (STEPS, Purpose::Resume);
    assert!(rest[0].memory.files[&end] == whole[&end], "in two parts as in one");
}
