//! Which jobs can share a slot, and how much memory each then takes.

use crate::{
    job::JobWork,
    spec::{Arch, DataSpec, OptimizerKind, OptimizerSpec, Precision, YChannel},
};

/// What must be equal for segments of training to be computed together, step by step: all that fixes the shapes of their
/// operations, what an operation is told once for all of them, and the steps. Seeds, learning rates, noise, weights and the number of bases may differ.
///
/// In order, keys of one shape follow each other by their steps, which therefore come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackKey {
    pub arch: Arch,
    pub layers: u32,
    pub width: u32,
    pub heads: u32,
    pub dim: u32,
    pub rank: u32,
    pub examples: u32,
    pub y_channel: YChannel,
    /// Sequences per step.
    pub batch: u32,
    pub precision: Precision,
    pub optimizer: OptimizerKind,
    /// The optimiser's betas and epsilon, as their bits.
    pub constants: [u64; 4],
    pub from: u64,
    pub to: u64,
}

impl JobWork {
    /// None: it has its slot for itself.
    pub fn pack_key(&self) -> Option<PackKey> {
        let Self::Train { model, data: DataSpec::SparseLinear(data), train, from, to, .. } = self else { return None };
        let OptimizerSpec { kind, betas: [one, two], epsilon, weight_decay, .. } = train.optimizer;
        Some(PackKey {
            arch: model.arch,
            layers: model.layers,
            width: model.width,
            heads: model.heads,
            dim: data.dim,
            rank: data.rank,
            examples: data.examples,
            y_channel: data.y_channel,
            batch: train.batch,
            precision: train.precision,
            optimizer: kind,
            constants: [one, two, epsilon, weight_decay].map(f64::to_bits),
            from: *from,
            to: *to,
        })
    }
}

impl PackKey {
    /// Trained numbers, P: blocks of 12 d² + 13 d, read-in, positions, final norm, read-out.
    pub fn parameters(&self) -> u64 {
        let (d, layers) = (u64::from(self.width), u64::from(self.layers));
        layers * (12 * d * d + 13 * d) + (self.channels() + 1 + self.positions()) * d + 3 * d + 1
    }

    /// About what one of the runs takes while it trains, in bytes, with everything in f32:
    ///
    /// - parameters, both moments and gradients, 4 P, and of each of the batch's pieces (one for 256 tokens, at most 8) its own
    ///   gradients, P; while a resume state is written, another 3 P;
    /// - on a GPU each run has one copy of its gradients, and products may take up to 32 MiB of each run beside all this, which is
    ///   for the tenth of its memory that is not given out;
    /// - of each of the batch's tokens what the way back needs: 16 d in each block and, once, 10 d and the token. On a CPU this is
    ///   the most it can be: pieces that follow one another on a thread share their memory, whatever run they are of.
    pub fn bytes(&self) -> u64 {
        let (d, layers) = (u64::from(self.width), u64::from(self.layers));
        let tokens = u64::from(self.batch) * self.positions();
        let pieces = (tokens / 256).clamp(1, 8).min(u64::from(self.batch));
        4 * ((7 + pieces) * self.parameters() + tokens * (16 * d * layers + 10 * d + self.channels()))
    }

    fn channels(&self) -> u64 {
        u64::from(self.dim) + u64::from(self.y_channel == YChannel::Own)
    }

    fn positions(&self) -> u64 {
        2 * u64::from(self.examples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(change: impl FnOnce(&mut serde_json::Value)) -> JobWork {
        let mut work = serde_json::json!({
            "job": "train", "seed": 1, "from": 0, "to": 10,
            "model": {"arch": "gpt2", "layers": 12, "width": 256, "heads": 8,
                "init": {"std": 0.02, "read_in_std": 0.1, "position_std": 0.02}},
            "data": {"family": "sparse_linear", "dim": 16, "bases": 4, "rank": 4, "overlap": "disjoint", "examples": 20,
                "noise_variance": 0.01, "weight_mean": 0.0, "y_channel": "shared"},
            "train": {"steps": 100, "batch": 128,
                "optimizer": {"kind": "adam", "learning_rate": 1e-4, "betas": [0.9, 0.999], "epsilon": 1e-8},
                "warmup": 0, "decay": "none", "clip_norm": null, "precision": "f32", "log_every": 20},
            "checkpoints": {"schedule": "log", "count": 2, "resume_every": 10}
        });
        change(&mut work);
        serde_json::from_value(work).expect("work")
    }

    #[test]
    fn what_the_shapes_do_not_depend_on_may_differ() {
        let one = train(|_| ());
        let other = train(|w| {
            w["seed"] = 2.into();
            w["train"]["optimizer"]["learning_rate"] = 1e-3.into();
            w["train"]["warmup"] = 5.into();
            w["data"]["noise_variance"] = 0.5.into();
            w["data"]["weight_mean"] = 1.0.into();
            w["data"]["bases"] = 2.into();
            w["checkpoints"]["count"] = 9.into();
        });
        assert!(one.pack_key().is_some());
        assert_eq!(one.pack_key(), other.pack_key());
    }

    #[test]
    fn whatever_a_shape_depends_on_must_be_equal() {
        let one = train(|_| ()).pack_key();
        for (part, field, value) in [
            ("model", "layers", 11),
            ("model", "width", 128),
            ("model", "heads", 4),
            ("data", "dim", 32),
            ("data", "rank", 2),
            ("data", "examples", 10),
            ("train", "batch", 64),
        ] {
            assert_ne!(one, train(|w| w[part][field] = value.into()).pack_key(), "{field}");
        }
        assert_ne!(one, train(|w| w["data"]["y_channel"] = "own".into()).pack_key());
        assert_ne!(one, train(|w| w["train"]["optimizer"]["betas"][1] = 0.99.into()).pack_key());
        assert_ne!(one, train(|w| w["train"]["optimizer"]["epsilon"] = 1e-6.into()).pack_key());
        assert_ne!(one, train(|w| w["to"] = 9.into()).pack_key());
        assert_ne!(one, train(|w| w["from"] = 1.into()).pack_key());
    }

    #[test]
    fn other_jobs_have_their_slot_for_themselves() {
        let work = JobWork::Selftest { seed: 1, index: 0, behaviour: crate::spec::Behaviour::Succeed, millis: 1 };
        assert_eq!(work.pack_key(), None);
    }
}
