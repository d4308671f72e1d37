//! Content keys: jobs with the same key give the same result, so one stored result serves them all.
//!
//! A key is a BLAKE3 hash over the canonical JSON of what determines a job's result, and of nothing else:
//!
//! - `code_version` of the job's kind.
//! - `work`: the hash of the job's [`JobWork`]. A training segment keeps only what changes what it writes: its
//!   [trajectory](trajectory), its bounds, the steps whose weights it keeps and how often it logs. TD is keyed by the
//!   sorted layers and sites that it looks at. A pretrained model and a data file count by what is in their files, not by
//!   where these are (except where they were not looked at).
//! - `inputs`: of each checkpoint read, the trajectory it lies on, its step and purpose. A state at a step depends on
//!   the trajectory alone (resuming is exact), not on how training was cut into segments or which other steps were
//!   kept; so an analysis is found again after the checkpoint schedule has changed, wherever the steps agree.
//!
//! The name of the sweep, other runs, the order of keys, comments, the list of analyses and their `at` have no part in it.

mod natural;

pub use natural::finetune_trajectory;
pub(crate) use natural::normal;

use serde::Serialize;
use serde_json::{Value as Json, json};
use taskvec_model::{
    id::{Digest, JobKey},
    job::{JobKind, JobWork, Purpose},
    spec::{At, CheckpointSpec, DataSpec, Decay, Layers, ModelSpec, TdSpec, TrainSpec},
};

/// BLAKE3 contexts keep keys apart from all other hashes, and from each other.
const JOB_CONTEXT: &str = "taskvec job key v1";
const WORK_CONTEXT: &str = "taskvec job work v1";
const TRAJECTORY_CONTEXT: &str = "taskvec training trajectory v1";

/// A checkpoint that a job reads, named by what determines its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Input {
    /// See [`trajectory`].
    pub trajectory: Digest,
    pub step: u64,
    pub purpose: Purpose,
}

/// JSON of one spelling: keys sorted, no white space, numbers as serde_json writes them.
pub fn canonical_json(value: &impl Serialize) -> String {
    sorted(&serde_json::to_value(value).expect("specifications have string keys and finite numbers"))
}

fn sorted(json: &Json) -> String {
    let mut out = String::new();
    write_sorted(json, &mut out);
    out
}

/// Sorts by itself: `serde_json::Map` keeps another order where any crate of the build asks for `preserve_order`.
fn write_sorted(json: &Json, out: &mut String) {
    match json {
        Json::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                write_sorted(item, out);
            }
            out.push(']');
        }
        Json::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                out.push_str(&Json::from(key.as_str()).to_string());
                out.push(':');
                write_sorted(value, out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// What the state of training at every step follows from: configuration, seed and the version of the code.
///
/// How often the loss is logged has no part in it; nor has the number of steps where the learning rate does not depend
/// on it, so that a longer training goes on from a shorter one.
pub fn trajectory(seed: u64, model: &ModelSpec, data: &DataSpec, train: &TrainSpec) -> Digest {
    let TrainSpec { steps, batch, optimizer, warmup, decay, clip_norm, precision, log_every: _ } = train;
    let ends_at = match decay {
        Decay::None => None,
        Decay::Cosine | Decay::Linear => Some(steps),
    };
    hash(
        TRAJECTORY_CONTEXT,
        &json!({
            "code_version": JobKind::Train.code_version(),
            "seed": seed,
            "model": model,
            "data": data,
            "train": {
                "steps": ends_at,
                "batch": batch,
                "optimizer": optimizer,
                "warmup": warmup,
                "decay": decay,
                "clip_norm": clip_norm,
                "precision": precision,
            },
        }),
    )
}

/// The content key of a job that reads `inputs`.
pub fn job_key(work: &JobWork, inputs: &[Input]) -> JobKey {
    let trajectory = match work {
        JobWork::Train { seed, model, data, train, .. } => Some(trajectory(*seed, model, data, train)),
        JobWork::Finetune { seed, model, data, lora, train, .. } => {
            Some(finetune_trajectory(*seed, model, data, lora, train))
        }
        _ => None,
    };
    key_of(work.kind(), work_digest(work, trajectory), inputs)
}

/// The hash of what a job is asked to do. `trajectory` is that of a training job, worked out once for all its segments.
pub(crate) fn work_digest(work: &JobWork, trajectory: Option<Digest>) -> Digest {
    let normal = match work {
        JobWork::Train { train, checkpoints, from, to, .. } => {
            let segment = Segment { steps: train.steps, log_every: train.log_every, checkpoints, from: *from, to: *to };
            segment.work(JobKind::Train, trajectory)
        }
        JobWork::Finetune { train, checkpoints, from, to, .. } => {
            let segment = Segment { steps: train.steps, log_every: train.log_every, checkpoints, from: *from, to: *to };
            segment.work(JobKind::Finetune, trajectory)
        }
        JobWork::Td { seed, model, data, td } => {
            let td = normal_td(td, model.layers);
            json!(JobWork::Td { seed: *seed, model: model.clone(), data: data.clone(), td })
        }
        JobWork::Measure { .. } | JobWork::Intervene { .. } => natural::by_content(&normal(work.clone())),
        JobWork::Baselines { .. } | JobWork::Icl { .. } | JobWork::Selftest { .. } => json!(work),
    };
    hash(WORK_CONTEXT, &normal)
}

pub(crate) fn key_of(kind: JobKind, work: Digest, inputs: &[Input]) -> JobKey {
    hash(JOB_CONTEXT, &json!({ "code_version": kind.code_version(), "work": work, "inputs": inputs }))
}

/// A segment of training, for its key.
struct Segment<'a> {
    steps: u64,
    log_every: u64,
    checkpoints: &'a CheckpointSpec,
    from: u64,
    to: u64,
}

impl Segment<'_> {
    fn work(&self, kind: JobKind, trajectory: Option<Digest>) -> Json {
        let Self { steps, log_every, checkpoints, from, to } = *self;
        json!({
            "job": kind,
            "trajectory": trajectory,
            "from": from,
            "to": to,
            "weights_at": analysis_steps_in(checkpoints, steps, from, to),
            "log_every": log_every,
            // The last update of a training is logged out of turn too.
            "logs_last": to == steps && !to.is_multiple_of(log_every),
        })
    }
}

/// The steps whose weights the segment `(from, to]` keeps; the untrained model belongs to the first segment.
pub(crate) fn analysis_steps_in(checkpoints: &CheckpointSpec, steps: u64, from: u64, to: u64) -> Vec<u64> {
    let inside = |step: &u64| (*step > from && *step <= to) || (*step == 0 && from == 0);
    checkpoints.analysis_steps(steps).into_iter().filter(inside).collect()
}

/// The same measurement in one spelling: layers listed and sorted, sites sorted, and at whichever checkpoint.
pub(crate) fn normal_td(td: &TdSpec, model_layers: u32) -> TdSpec {
    let mut layers = td.layers.resolve(model_layers);
    layers.sort_unstable();
    let mut sites = td.sites.clone();
    sites.sort_unstable();
    TdSpec { layers: Layers::List(layers), sites, k: td.k, samples_per_task: td.samples_per_task, at: At::All }
}

fn hash(context: &str, json: &Json) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(sorted(json).as_bytes());
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_sorts_keys_at_every_depth_and_escapes_them() {
        let json = json!({ "b": [{ "z": 1, "a": 0.5 }], "a\"": null, "é": 1e-4 });
        assert_eq!(canonical_json(&json), r#"{"a\"":null,"b":[{"a":0.5,"z":1}],"é":0.0001}"#);
    }
}
