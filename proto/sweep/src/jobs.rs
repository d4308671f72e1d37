//! The jobs of a run and how they depend on each other.

mod natural;

use crate::{
    cost::flops,
    key::{Input, analysis_steps_in, key_of, normal, normal_td, trajectory, work_digest},
};
use taskvec_model::{
    id::Digest,
    job::{JobWork, Purpose, Subject},
    plan::{Need, PlannedJob},
    spec::{AnalysisSpec, Pretrain, RunSpec, Selftest},
};

/// How many jobs a run has, without making them.
pub(crate) fn count(spec: &RunSpec) -> u64 {
    match spec {
        RunSpec::Selftest(run) => run.selftest.jobs.into(),
        RunSpec::Pretrain(run) => {
            let segments = run.train.steps.div_ceil(run.checkpoints.resume_every);
            let steps = run.checkpoints.analysis_steps(run.train.steps);
            let wanted = |a: &AnalysisSpec| steps.iter().filter(|s| a.at().wants(**s, run.train.steps)).count() as u64;
            segments + u64::from(!run.analyses.is_empty()) + run.analyses.iter().map(wanted).sum::<u64>()
        }
        RunSpec::Finetune(run) => natural::count_finetune(run),
        RunSpec::Evaluate(run) => natural::count(&run.data, run.analyses.iter()),
    }
}

/// Appends the jobs of run number `run`.
pub(crate) fn append(jobs: &mut Vec<PlannedJob>, run: usize, spec: &RunSpec) {
    match spec {
        RunSpec::Selftest(spec) => selftest(jobs, run, spec),
        RunSpec::Pretrain(spec) => pretrain(jobs, run, spec),
        RunSpec::Finetune(spec) => natural::finetune(jobs, run, spec),
        RunSpec::Evaluate(spec) => natural::evaluate(jobs, run, spec),
    }
}

fn selftest(jobs: &mut Vec<PlannedJob>, run: usize, spec: &Selftest) {
    for index in 0..spec.selftest.jobs {
        let (behaviour, millis) = (spec.selftest.behaviour, spec.selftest.millis);
        let work = JobWork::Selftest { seed: spec.seed, index, behaviour, millis };
        let digest = work_digest(&work, None);
        push(jobs, run, None, work, digest, None);
    }
}

/// The baselines, then training segment by segment, each followed by the analyses of its checkpoints.
fn pretrain(jobs: &mut Vec<PlannedJob>, run: usize, spec: &Pretrain) {
    if !spec.analyses.is_empty() {
        let td_samples_per_task = spec.analyses.iter().find_map(|a| match a {
            AnalysisSpec::Td(td) => Some(td.samples_per_task),
            AnalysisSpec::Icl(_) | AnalysisSpec::Interventions(_) => None,
        });
        let (data, sequences) = (spec.data.clone(), spec.evaluate.sequences);
        let work = JobWork::Baselines { seed: spec.seed, data, sequences, td_samples_per_task };
        let digest = work_digest(&work, None);
        push(jobs, run, None, work, digest, None);
    }
    let trajectory = trajectory(spec.seed, &spec.model, &spec.data, &spec.train);
    let analyses: Vec<(&AnalysisSpec, JobWork, Digest)> = spec.analyses.iter().map(|a| with_digest(spec, a)).collect();
    let mut before = None;
    for (from, to) in spec.checkpoints.segments(spec.train.steps) {
        let work = JobWork::Train {
            seed: spec.seed,
            model: spec.model.clone(),
            data: spec.data.clone(),
            train: spec.train.clone(),
            checkpoints: spec.checkpoints.clone(),
            from,
            to,
        };
        let digest = work_digest(&work, Some(trajectory));
        let resume = before.map(|job| (trajectory, Need { job, step: from, purpose: Purpose::Resume }));
        let segment = push(jobs, run, Some(to), work, digest, resume);
        for step in analysis_steps_in(&spec.checkpoints, spec.train.steps, from, to) {
            for (_, work, digest) in analyses.iter().filter(|(a, ..)| a.at().wants(step, spec.train.steps)) {
                let weights = (trajectory, Need { job: segment, step, purpose: Purpose::Weights });
                push(jobs, run, Some(step), work.clone(), *digest, Some(weights));
            }
        }
        before = Some(segment);
    }
}

fn with_digest<'a>(spec: &Pretrain, analysis: &'a AnalysisSpec) -> (&'a AnalysisSpec, JobWork, Digest) {
    let work = analysis_work(spec, analysis);
    let digest = work_digest(&work, None);
    (analysis, work, digest)
}

fn analysis_work(spec: &Pretrain, analysis: &AnalysisSpec) -> JobWork {
    let (seed, model, data) = (spec.seed, spec.model.clone(), spec.data.clone());
    match analysis {
        AnalysisSpec::Icl(_) => JobWork::Icl { seed, model, data, sequences: spec.evaluate.sequences },
        // Which checkpoints are analysed is settled here; the job itself does not depend on it.
        AnalysisSpec::Td(td) => JobWork::Td { seed, td: normal_td(td, model.layers), model, data },
        AnalysisSpec::Interventions(patches) => {
            let subject = Subject::Synthetic { model, data };
            normal(JobWork::Intervene { seed, subject, spec: patches.clone() })
        }
    }
}

/// Adds a job that reads at most one checkpoint, given with the trajectory it lies on; gives the job's index.
fn push(
    jobs: &mut Vec<PlannedJob>,
    run: usize,
    step: Option<u64>,
    work: JobWork,
    digest: Digest,
    reads: Option<(Digest, Need)>,
) -> usize {
    let inputs = reads.map(|(trajectory, need)| Input { trajectory, step: need.step, purpose: need.purpose });
    let key = key_of(work.kind(), digest, inputs.as_slice());
    let flops = flops(&work);
    jobs.push(PlannedJob { run, step, work, key, needs: reads.map(|(_, need)| need).into_iter().collect(), flops });
    jobs.len() - 1
}
