//! The jobs of runs on pretrained language models.

use super::push;
use crate::key::{analysis_steps_in, finetune_trajectory, normal, work_digest};
use taskvec_model::{
    id::Digest,
    job::{JobWork, LensPart, Purpose, Subject, TdPart},
    plan::{Need, PlannedJob},
    spec::{Evaluate, Finetune, NaturalAnalysis, NaturalSpec, PretrainedSpec},
};

/// How many jobs measure one state of a model.
pub(super) fn count<'a>(data: &NaturalSpec, analyses: impl Iterator<Item = &'a NaturalAnalysis>) -> u64 {
    let (mut measured, mut patched) = (false, 0);
    for analysis in analyses {
        match analysis {
            NaturalAnalysis::Interventions(spec) => patched += spec.shots.len(),
            _ => measured = true,
        }
    }
    (usize::from(measured) * data.shots.len() + patched) as u64
}

pub(super) fn count_finetune(run: &Finetune) -> u64 {
    let segments = run.train.steps.div_ceil(run.checkpoints.resume_every);
    let steps = run.checkpoints.analysis_steps(run.train.steps);
    segments + steps.iter().map(|step| count(&run.data, wanted(run, *step))).sum::<u64>()
}

fn wanted(run: &Finetune, step: u64) -> impl Iterator<Item = &NaturalAnalysis> {
    run.analyses.iter().filter(move |a| a.at().wants(step, run.train.steps))
}

pub(super) fn evaluate(jobs: &mut Vec<PlannedJob>, run: usize, spec: &Evaluate) {
    let step = spec.model.identity.as_ref().map_or(0, |i| i.step);
    for work in works(spec.seed, &spec.model, &spec.data, spec.analyses.iter()) {
        let digest = work_digest(&work, None);
        push(jobs, run, Some(step), work, digest, None);
    }
}

/// Training segment by segment, each followed by the analyses of its checkpoints.
pub(super) fn finetune(jobs: &mut Vec<PlannedJob>, run: usize, spec: &Finetune) {
    let trajectory = finetune_trajectory(spec.seed, &spec.model, &spec.data, &spec.lora, &spec.train);
    let mut before = None;
    for (from, to) in spec.checkpoints.segments(spec.train.steps) {
        let work = segment(spec, from, to);
        let digest = work_digest(&work, Some(trajectory));
        let resume = before.map(|job| (trajectory, Need { job, step: from, purpose: Purpose::Resume }));
        let trained = push(jobs, run, Some(to), work, digest, resume);
        for step in analysis_steps_in(&spec.checkpoints, spec.train.steps, from, to) {
            let weights: (Digest, Need) = (trajectory, Need { job: trained, step, purpose: Purpose::Weights });
            for work in works(spec.seed, &spec.model, &spec.data, wanted(spec, step)) {
                let digest = work_digest(&work, None);
                push(jobs, run, Some(step), work, digest, Some(weights));
            }
        }
        before = Some(trained);
    }
}

fn segment(spec: &Finetune, from: u64, to: u64) -> JobWork {
    normal(JobWork::Finetune {
        seed: spec.seed,
        model: spec.model.clone(),
        data: spec.data.clone(),
        lora: spec.lora.clone(),
        train: spec.train.clone(),
        checkpoints: spec.checkpoints.clone(),
        from,
        to,
    })
}

/// One measurement for every number of shots, whatever it is that is measured; then the interventions.
fn works<'a>(
    seed: u64,
    model: &PretrainedSpec,
    data: &NaturalSpec,
    analyses: impl Iterator<Item = &'a NaturalAnalysis>,
) -> Vec<JobWork> {
    let (mut icl, mut td, mut lens, mut patches) = (None, None, None, Vec::new());
    for analysis in analyses {
        match analysis {
            NaturalAnalysis::Icl(a) => icl = Some(a.samples_per_task),
            NaturalAnalysis::Td(a) => {
                let (layers, sites, samples_per_task) = (a.layers.clone(), a.sites.clone(), a.samples_per_task);
                td = Some(TdPart { layers, sites, k: a.k, samples_per_task, pairs: a.pairs });
            }
            NaturalAnalysis::Lens(a) => {
                lens = Some(LensPart { layers: a.layers.clone(), samples_per_task: a.samples_per_task });
            }
            NaturalAnalysis::Interventions(spec) => patches.push(spec),
        }
    }
    let mut out = Vec::new();
    if icl.is_some() || td.is_some() || lens.is_some() {
        for &shots in &data.shots {
            let (model, data, td, lens) = (model.clone(), data.clone(), td.clone(), lens.clone());
            out.push(normal(JobWork::Measure { seed, model, data, shots, icl, td, lens }));
        }
    }
    for spec in patches {
        for &shots in &spec.shots {
            let subject = Subject::Language { model: model.clone(), data: data.clone(), shots };
            out.push(normal(JobWork::Intervene { seed, subject, spec: spec.clone() }));
        }
    }
    out
}
