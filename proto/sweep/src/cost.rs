//! Rough sizes: parameters, memory, floating-point operations and checkpoint bytes, for limits and estimates.

mod natural;

use crate::key::analysis_steps_in;
use std::collections::BTreeMap;
use taskvec_model::{
    job::{JobKind, JobWork, Subject},
    plan::Plan,
    spec::{DataSpec, SparseLinear, TrainSpec},
};

/// The sizes that decide what a network costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub layers: f64,
    pub width: f64,
    pub heads: f64,
    /// Channels of a token.
    pub channels: f64,
    /// Positions in a sequence.
    pub positions: f64,
}

impl Shape {
    fn of(model: &taskvec_model::spec::ModelSpec, data: &SparseLinear) -> Self {
        Self {
            layers: model.layers.into(),
            width: model.width.into(),
            heads: model.heads.into(),
            channels: data.channels().into(),
            positions: 2.0 * f64::from(data.examples),
        }
    }

    /// Trained numbers: blocks of 12 d² + 13 d, read-in, positions, final norm, read-out.
    pub fn parameters(&self) -> f64 {
        let d = self.width;
        self.layers * (12.0 * d * d + 13.0 * d) + (self.channels + 1.0) * d + self.positions * d + 3.0 * d + 1.0
    }

    /// Bytes of f32 weights, gradients and both moments, and of what the backward pass keeps of one batch.
    pub fn training_bytes(&self, batch: f64) -> f64 {
        let per_token = self.layers * (16.0 * self.width + 2.0 * self.heads * self.positions);
        16.0 * self.parameters() + 4.0 * batch * self.positions * per_token
    }

    /// Operations of one forward pass over `sequences`: products with the weights, and attention.
    fn forward_flops(&self, sequences: f64) -> f64 {
        let d = self.width;
        let weights = self.layers * 12.0 * d * d + self.channels * d + d;
        let attention = self.layers * 2.0 * self.positions * d;
        sequences * self.positions * 2.0 * (weights + attention)
    }
}

/// Floating-point operations of a job.
pub(crate) fn flops(work: &JobWork) -> f64 {
    natural::flops(work).unwrap_or_else(|| synthetic_flops(work))
}

fn synthetic_flops(work: &JobWork) -> f64 {
    match work {
        JobWork::Train { model, data: DataSpec::SparseLinear(data), train, from, to, .. } => {
            let TrainSpec { batch, .. } = train;
            // The backward pass costs twice the forward pass.
            3.0 * Shape::of(model, data).forward_flops(f64::from(*batch)) * (to - from) as f64
        }
        JobWork::Icl { model, data: DataSpec::SparseLinear(data), sequences, .. } => {
            Shape::of(model, data).forward_flops(f64::from(*sequences))
        }
        JobWork::Td { model, data: DataSpec::SparseLinear(data), td, .. } => {
            let points = f64::from(data.bases) * f64::from(td.samples_per_task);
            let spaces = (td.layers.resolve(model.layers).len() * td.sites.len()) as f64;
            let neighbours = 3.0 * points * points * f64::from(model.width) * spaces;
            Shape::of(model, data).forward_flops(points * td.sites.len() as f64) + neighbours
        }
        JobWork::Baselines { data: DataSpec::SparseLinear(data), sequences, .. } => {
            let (d, r, k) = (f64::from(data.dim), f64::from(data.rank), f64::from(data.examples));
            let ridge = 2.0 * k * d * d + d * d * d / 3.0;
            let lasso = 200.0 * d * d;
            let bayes = f64::from(data.bases) * (2.0 * k * r * r + r * r * r);
            f64::from(*sequences) * k * (ridge + lasso + bayes)
        }
        JobWork::Intervene {
            subject: Subject::Synthetic { model, data: DataSpec::SparseLinear(data) }, spec, ..
        } => {
            let tasks = data.latent_tasks();
            let layers = spec.layers.resolve(model.layers).map_or(1, |l| l.len());
            let passes = tasks.len() + layers * spec.pairs.count(&tasks);
            let sequences = passes as f64 * f64::from(spec.samples_per_task) * f64::from(spec.replicates);
            Shape::of(model, data).forward_flops(sequences)
        }
        JobWork::Measure { .. } | JobWork::Intervene { .. } | JobWork::Finetune { .. } | JobWork::Selftest { .. } => {
            0.0
        }
    }
}

/// What a sweep would cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Estimate {
    pub runs: usize,
    pub kinds: BTreeMap<JobKind, KindEstimate>,
    /// Bytes of the weights that the jobs still to do will store.
    pub weight_bytes: f64,
    /// Bytes of the resume states that they will store; each is removed when no job needs it any more.
    pub resume_bytes: f64,
    /// Bytes of memory that the largest of them takes, roughly: of runs in training all, of pretrained models that were looked
    /// at the weights.
    pub memory_bytes: f64,
    /// Seconds that jobs take whatever the speed of the machine (self-tests).
    pub fixed_seconds: f64,
}

/// The jobs of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KindEstimate {
    pub jobs: usize,
    /// How many of them a stored result satisfies.
    pub cached: usize,
    /// Floating-point operations of the others, roughly; 0 for those whose model was not looked at.
    pub flops: f64,
}

impl Estimate {
    pub fn jobs(&self) -> usize {
        self.kinds.values().map(|k| k.jobs).sum()
    }

    pub fn cached(&self) -> usize {
        self.kinds.values().map(|k| k.cached).sum()
    }

    pub fn flops(&self) -> f64 {
        self.kinds.values().map(|k| k.flops).sum()
    }

    /// Seconds of work for machines that together do `gflops` 10⁹ operations per second (above 0).
    pub fn seconds(&self, gflops: f64) -> f64 {
        self.flops() / (gflops * 1e9) + self.fixed_seconds
    }
}

fn memory(work: &JobWork) -> f64 {
    if let Some(key) = work.pack_key() {
        return key.bytes() as f64;
    }
    let model = work.pretrained().and_then(|model| Some((model.identity.as_ref()?.parameters, model.dtype.bytes())));
    model.map_or(0.0, |(parameters, bytes)| (parameters * bytes) as f64)
}

/// What the jobs of a plan cost that no stored result satisfies. `satisfied` is by job, as [`Plan::satisfied`] gives it;
/// jobs beyond its end count as not satisfied. Equal jobs of a sweep are done, and counted, once.
pub fn estimate(plan: &Plan, satisfied: &[bool]) -> Estimate {
    let mut out = Estimate { runs: plan.runs.len(), ..Estimate::default() };
    let mut seen = std::collections::BTreeSet::new();
    for (i, job) in plan.jobs.iter().enumerate() {
        let kind = out.kinds.entry(job.kind()).or_default();
        kind.jobs += 1;
        if satisfied.get(i) == Some(&true) {
            kind.cached += 1;
            continue;
        }
        if !seen.insert(job.key) {
            continue;
        }
        kind.flops += job.flops;
        out.memory_bytes = out.memory_bytes.max(memory(&job.work));
        match &job.work {
            JobWork::Train { model, data: DataSpec::SparseLinear(data), train, checkpoints, from, to, .. } => {
                let bytes = 4.0 * Shape::of(model, data).parameters();
                out.weight_bytes += bytes * analysis_steps_in(checkpoints, train.steps, *from, *to).len() as f64;
                out.resume_bytes += 3.0 * bytes;
            }
            JobWork::Finetune { model, lora, train, checkpoints, from, to, .. } => {
                let bytes = 4.0 * natural::adapter_parameters(model, lora);
                out.weight_bytes += bytes * analysis_steps_in(checkpoints, train.steps, *from, *to).len() as f64;
                out.resume_bytes += 3.0 * bytes;
            }
            JobWork::Selftest { millis, .. } => out.fixed_seconds += *millis as f64 / 1000.0,
            _ => {}
        }
    }
    out
}
