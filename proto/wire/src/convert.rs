//! Domain types to and from their wire form. What comes off the wire may be wrong, so that way can fail.

use crate::{MAX_MESSAGE, pb};
use prost::Message;
use taskvec_model::{
    id::{AttemptRef, Digest, JobId},
    job::{Assignment, BlobRef, CheckpointRef, Handover, Produced, Progress},
};

/// A message that a well-behaved peer would not have sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("malformed message: {0}")]
pub struct BadMessage(pub String);

impl BadMessage {
    pub(crate) fn missing(field: &str) -> Self {
        Self(format!("{field} is missing"))
    }

    pub(crate) fn because(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl From<BadMessage> for tonic::Status {
    fn from(bad: BadMessage) -> Self {
        Self::invalid_argument(bad.to_string())
    }
}

impl From<AttemptRef> for pb::Attempt {
    fn from(a: AttemptRef) -> Self {
        Self { job_id: a.job.0, number: a.number }
    }
}

impl From<pb::Attempt> for AttemptRef {
    fn from(a: pb::Attempt) -> Self {
        Self { job: JobId(a.job_id), number: a.number }
    }
}

/// The attempt that a worker's message is about.
pub fn attempt(field: Option<pb::Attempt>) -> Result<AttemptRef, BadMessage> {
    field.map(Into::into).ok_or_else(|| BadMessage::missing("attempt"))
}

impl From<CheckpointRef> for pb::Checkpoint {
    fn from(c: CheckpointRef) -> Self {
        Self { step: c.step, purpose: c.purpose.to_string(), digest: c.blob.digest.0.to_vec(), bytes: c.blob.bytes }
    }
}

impl TryFrom<pb::Checkpoint> for CheckpointRef {
    type Error = BadMessage;
    fn try_from(c: pb::Checkpoint) -> Result<Self, BadMessage> {
        Ok(Self {
            step: c.step,
            purpose: c.purpose.parse().map_err(BadMessage::because)?,
            blob: BlobRef { digest: digest(&c.digest)?, bytes: c.bytes },
        })
    }
}

pub fn digest(bytes: &[u8]) -> Result<Digest, BadMessage> {
    bytes.try_into().map_err(BadMessage::because)
}

impl From<Produced> for pb::Produced {
    fn from(p: Produced) -> Self {
        Self { metrics: Some(p.metrics.into()), checkpoints: p.checkpoints.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<pb::Produced> for Produced {
    type Error = BadMessage;
    fn try_from(p: pb::Produced) -> Result<Self, BadMessage> {
        Ok(Self {
            metrics: p.metrics.unwrap_or_default().try_into()?,
            checkpoints: p.checkpoints.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Handover> for pb::Handover {
    fn from(h: Handover) -> Self {
        Self { state: Some(h.state.into()), produced: Some(h.produced.into()) }
    }
}

impl TryFrom<pb::Handover> for Handover {
    type Error = BadMessage;
    fn try_from(h: pb::Handover) -> Result<Self, BadMessage> {
        Ok(Self {
            state: h.state.ok_or_else(|| BadMessage::missing("handover.state"))?.try_into()?,
            produced: h.produced.unwrap_or_default().try_into()?,
        })
    }
}

/// The part of a message that starts `attempt` on a worker.
pub fn start(attempt: AttemptRef, assignment: Assignment) -> Result<pb::Start, BadMessage> {
    Ok(pb::Start {
        attempt: Some(attempt.into()),
        work: serde_json::to_string(&assignment.work).map_err(BadMessage::because)?,
        inputs: assignment.inputs.into_iter().map(Into::into).collect(),
        handover: assignment.handover.map(Into::into),
    })
}

/// The inverse of [`start`].
pub fn assignment(message: pb::Start) -> Result<(AttemptRef, Assignment), BadMessage> {
    let assignment = Assignment {
        work: serde_json::from_str(&message.work).map_err(BadMessage::because)?,
        inputs: message.inputs.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        handover: message.handover.map(TryInto::try_into).transpose()?,
    };
    Ok((attempt(message.attempt)?, assignment))
}

/// The message that starts these together in one slot of a worker. Where they are too large for one, as handovers with many
/// rows may be, there are several: the worker then takes them one after the other.
pub fn assign(starts: Vec<pb::Start>) -> Vec<pb::Assign> {
    // Each has a tag and its length beside it.
    const BESIDE: usize = 16;
    let (mut messages, mut room) = (Vec::<pb::Assign>::new(), 0);
    for start in starts {
        let bytes = start.encoded_len() + BESIDE;
        match messages.last_mut().filter(|_| bytes <= room) {
            Some(message) => message.starts.push(start),
            None => {
                messages.push(pb::Assign { starts: vec![start] });
                room = MAX_MESSAGE - BESIDE;
            }
        }
        room = room.saturating_sub(bytes);
    }
    messages
}

impl pb::AttemptProgress {
    pub fn new(attempt: AttemptRef, p: Progress) -> Self {
        Self { attempt: Some(attempt.into()), done: p.done, total: p.total, per_second: p.per_second, loss: p.loss }
    }

    pub fn progress(&self) -> Progress {
        Progress { done: self.done, total: self.total, per_second: self.per_second, loss: self.loss }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskvec_model::{
        job::{JobWork, Purpose},
        metric::{Baseline, Estimator, Icl, IclMetric, Intervention, Lens, Metrics, Td, TdBound, TdPair, TrainLoss},
        spec::{Behaviour, PatchMode, PatchPositions, Site},
    };

    fn produced() -> Produced {
        let task = || "B1".to_owned();
        Produced {
            metrics: Metrics {
                train_loss: vec![TrainLoss { step: 1, loss: 0.1, learning_rate: 1e-4, sequences_per_second: 3.0 }],
                icl: vec![Icl {
                    latent_task: task(),
                    shots: 7,
                    position: None,
                    metric: IclMetric::Mse,
                    value: 0.5,
                    stderr: 0.1,
                    n: 10,
                }],
                baselines: vec![Baseline {
                    latent_task: task(),
                    position: Some(3),
                    estimator: Estimator::Oracle,
                    mse: 0.1,
                }],
                td: vec![Td {
                    layer: 2,
                    site: Site::S,
                    latent_task: task(),
                    shots: 7,
                    k: 10,
                    n: 100,
                    value: 0.9,
                    stderr: 0.03,
                }],
                td_bound: vec![TdBound { latent_task: task(), shots: 7, value: 1.0 }],
                td_pairs: vec![TdPair {
                    layer: 2,
                    site: Site::X,
                    latent_task_a: task(),
                    latent_task_b: "B2".to_owned(),
                    shots: 7,
                    value: 0.75,
                }],
                interventions: vec![intervention()],
                lens: vec![Lens {
                    layer: 1,
                    latent_task: task(),
                    shots: 4,
                    accuracy: 0.25,
                    log_prob: -2.5,
                    rank: 3.5,
                    n: 9,
                }],
            },
            checkpoints: vec![CheckpointRef {
                step: 10,
                purpose: Purpose::Resume,
                blob: BlobRef { digest: Digest([7; 32]), bytes: 12 },
            }],
        }
    }

    fn intervention() -> Intervention {
        Intervention {
            layer: 5,
            site: Site::Y,
            positions: PatchPositions::All,
            mode: PatchMode::AddMeanDifference,
            source_task: "AND".to_owned(),
            target_task: "Null".to_owned(),
            shots: 4,
            metric: IclMetric::Accuracy,
            baseline: 0.5,
            patched: 0.25,
            replicate: 3,
            n: 100,
        }
    }

    #[test]
    fn everything_survives_the_wire() {
        let attempt = AttemptRef { job: JobId(3), number: 2 };
        let given = Assignment {
            work: JobWork::Selftest { seed: 1, index: 2, behaviour: Behaviour::Succeed, millis: 3 },
            inputs: produced().checkpoints,
            handover: Some(Handover { state: produced().checkpoints[0], produced: produced() }),
        };
        let message = start(attempt, given.clone()).expect("serialises");
        assert_eq!(assignment(message), Ok((attempt, given)));
    }

    #[test]
    fn a_pack_is_one_message_unless_it_is_too_large() {
        let start = |bytes| pb::Start { work: "x".repeat(bytes), ..pb::Start::default() };
        let sizes = |starts: &[usize]| {
            let messages = assign(starts.iter().copied().map(start).collect());
            assert!(messages.iter().all(|m| m.encoded_len() + 8 <= MAX_MESSAGE));
            messages.iter().map(|m| m.starts.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[10, 0, 1000]), [3]);
        assert_eq!(sizes(&[MAX_MESSAGE / 2, MAX_MESSAGE / 3, MAX_MESSAGE / 3, 5]), [2, 2]);
        assert_eq!(sizes(&[MAX_MESSAGE - 100, 100, 5]), [1, 2]);
        assert_eq!(sizes(&[]), [0; 0]);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(attempt(None), Err(BadMessage("attempt is missing".into())));
        assert!(digest(&[1, 2]).is_err());
        let odd = pb::Intervention { mode: "swap".into(), ..intervention().into() };
        assert_eq!(Intervention::try_from(odd), Err(BadMessage("`swap` is not a mode of intervention".into())));
        let stray = pb::Checkpoint { purpose: "fun".into(), digest: vec![0; 32], ..Default::default() };
        assert_eq!(CheckpointRef::try_from(stray), Err(BadMessage("`fun` is not a checkpoint purpose".into())));
    }
}
