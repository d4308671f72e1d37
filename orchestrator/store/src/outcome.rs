//! What an attempt hands back, and whether it can be stored.

use crate::{Store, error::StoreError};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
};
use taskvec_model::{
    id::{AttemptRef, Digest},
    job::{CheckpointRef, Handover, Produced},
    metric::{Intervention, Metrics},
};

/// What an attempt handed back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub produced: Produced,
    /// Of an attempt that was stopped between two steps.
    pub handover: Option<Handover>,
    /// What the worker wrote while it ran; of a long one, the end is kept.
    pub log: String,
}

impl Outcome {
    /// All checkpoints that must be stored before it.
    pub(crate) fn checkpoints(&self) -> impl Iterator<Item = &CheckpointRef> {
        let handover = self.handover.iter().flat_map(|h| h.produced.checkpoints.iter().chain([&h.state]));
        self.produced.checkpoints.iter().chain(handover)
    }

    /// Can its rows be stored at all? If not, why.
    pub fn check(&self) -> Result<(), String> {
        check_metrics(&self.produced.metrics)?;
        once("checkpoint", self.produced.checkpoints.iter().map(|c| (c.step, c.purpose)))?;
        self.checkpoints().try_for_each(|c| fits("step", c.step, i64::MAX.unsigned_abs()))
    }
}

impl Store {
    /// Can this outcome be stored? To be asked before the scheduler hears of it: in [`Leader::commit`](crate::Leader)
    /// one that cannot voids the whole batch. [`StoreError::BadOutcome`] and [`StoreError::MissingBlob`] are that
    /// worker's fault alone.
    pub async fn check_outcome(&self, attempt: AttemptRef, outcome: &Outcome) -> Result<(), StoreError> {
        outcome.check().map_err(|why| StoreError::BadOutcome { attempt, why })?;
        let wanted: BTreeMap<Digest, u64> = outcome.checkpoints().map(|c| (c.blob.digest, c.blob.bytes)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let digests: Vec<&[u8]> = wanted.keys().map(|d| d.0.as_slice()).collect();
        let stored: Vec<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT digest, bytes FROM taskvec.blobs WHERE digest = ANY ($1)")
                .bind(digests)
                .fetch_all(&self.pool)
                .await?;
        let stored: BTreeMap<Vec<u8>, u64> = stored.into_iter().map(|(d, n)| (d, n.unsigned_abs())).collect();
        for (digest, bytes) in wanted {
            let found = stored.get(digest.0.as_slice()).ok_or(StoreError::MissingBlob { attempt, digest })?;
            if *found != bytes {
                let why = format!("blob {digest} has {found} bytes, not {bytes}");
                return Err(StoreError::BadOutcome { attempt, why });
            }
        }
        Ok(())
    }
}

fn check_metrics(m: &Metrics) -> Result<(), String> {
    const INT: u64 = i32::MAX.unsigned_abs() as u64;
    for row in &m.train_loss {
        fits("step", row.step, i64::MAX.unsigned_abs())?;
    }
    let shots = m.icl.iter().map(|r| r.shots).chain(m.td.iter().map(|r| r.shots));
    let counts = m.icl.iter().map(|r| r.n).chain(m.td.iter().flat_map(|r| [r.n, r.k, r.layer]));
    let positions = m.icl.iter().map(|r| r.position).chain(m.baselines.iter().map(|r| r.position)).flatten();
    let bounds = m.td_bound.iter().map(|r| r.shots);
    let pairs = m.td_pairs.iter().flat_map(|r| [r.layer, r.shots]);
    let patches = m.interventions.iter().flat_map(|r| [r.layer, r.shots, r.replicate, r.n]);
    let lens = m.lens.iter().flat_map(|r| [r.layer, r.shots, r.n]);
    for number in shots.chain(counts).chain(positions).chain(bounds).chain(pairs).chain(patches).chain(lens) {
        fits("a metric's number", u64::from(number), INT)?;
    }
    for task in latent_tasks(m) {
        if task.contains('\0') || task.len() > 200 {
            return Err(format!("`{}` cannot name a latent task", task.escape_debug()));
        }
    }
    once("train_loss", m.train_loss.iter().map(|r| r.step))?;
    once("icl", m.icl.iter().map(|r| (&r.latent_task, r.shots, r.position, r.metric.as_str())))?;
    once("baselines", m.baselines.iter().map(|r| (&r.latent_task, r.estimator.as_str(), r.position)))?;
    once("td", m.td.iter().map(|r| (r.layer, r.site, &r.latent_task, r.shots, r.k)))?;
    once("td_bound", m.td_bound.iter().map(|r| (&r.latent_task, r.shots)))?;
    once("td_pairs", m.td_pairs.iter().map(|r| (r.layer, r.site, &r.latent_task_a, &r.latent_task_b, r.shots)))?;
    let patch = |r: &Intervention| (r.layer, r.site, r.positions, r.mode, r.shots, r.metric, r.replicate);
    once("interventions", m.interventions.iter().map(|r| (patch(r), &r.source_task, &r.target_task)))?;
    once("lens", m.lens.iter().map(|r| (r.layer, &r.latent_task, r.shots)))
}

fn latent_tasks(m: &Metrics) -> BTreeSet<&str> {
    let icl = m.icl.iter().map(|r| r.latent_task.as_str());
    let baselines = m.baselines.iter().map(|r| r.latent_task.as_str());
    let td = m.td.iter().map(|r| r.latent_task.as_str());
    let bounds = m.td_bound.iter().map(|r| r.latent_task.as_str());
    let pairs = m.td_pairs.iter().flat_map(|r| [r.latent_task_a.as_str(), r.latent_task_b.as_str()]);
    let patches = m.interventions.iter().flat_map(|r| [r.source_task.as_str(), r.target_task.as_str()]);
    let lens = m.lens.iter().map(|r| r.latent_task.as_str());
    icl.chain(baselines).chain(td).chain(bounds).chain(pairs).chain(patches).chain(lens).collect()
}

fn once<K: Eq + Hash + std::fmt::Debug>(table: &str, keys: impl Iterator<Item = K>) -> Result<(), String> {
    let mut seen = std::collections::HashSet::new();
    for key in keys {
        if seen.contains(&key) {
            return Err(format!("two rows of {table} for {key:?}"));
        }
        seen.insert(key);
    }
    Ok(())
}

fn fits(what: &str, number: u64, limit: u64) -> Result<(), String> {
    if number <= limit { Ok(()) } else { Err(format!("{what} {number} is above {limit}")) }
}
