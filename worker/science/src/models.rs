//! Pretrained models that jobs share: the one used last stays in memory, since the jobs of a run come one after the other.

use crate::{
    ScienceError,
    analysis::natural::{Reader, TOKENS, TOKENS_TOGETHER},
    load::{self, Files, Room},
    model::language::{Config, MixerConfig},
    tokenizer::Tokenizer,
};
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use taskvec_model::{
    id::Digest,
    spec::{FloatType, PretrainedSpec},
};

/// The models of one process.
#[derive(Default)]
pub struct Models {
    /// The GPUs that hold them, by number; what these have no room for is on the CPU.
    gpus: Vec<usize>,
    last: Mutex<Option<(Key, Arc<Reader>)>>,
}

type Key = (Digest, FloatType);

impl Models {
    /// Models on these GPUs, as many blocks on each as it has room for. In a build without the feature `candle-cuda`, on the
    /// CPU all the same.
    pub fn on_gpus(gpus: Vec<usize>) -> Self {
        Self { gpus, last: Mutex::default() }
    }

    /// The model that `spec` means, from memory or from its files. Only one is loaded at a time.
    ///
    /// # Errors
    /// Where its files cannot be read, or are not those that the sweep was planned with; where this machine has no room for
    /// it and for what a pass needs beside it.
    pub fn get(&self, spec: &PretrainedSpec) -> Result<Arc<Reader>, ScienceError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, digest) = found(spec)?;
        let key = (digest, spec.dtype);
        if let Some((_, reader)) = last.as_ref().filter(|(known, _)| *known == key) {
            return Ok(Arc::clone(reader));
        }
        // Before the next one is read, so that memory need not hold both.
        *last = None;
        let tokenizer = tokenizer(&files)?;
        let beside = beside(files.config());
        let rooms: Vec<Room> = self.rooms()?.into_iter().map(|room| less(room, beside)).collect();
        let model = files.load(load::dtype(spec.dtype), &rooms)?;
        let reader = Arc::new(Reader { model, tokenizer });
        *last = Some((key, Arc::clone(&reader)));
        Ok(reader)
    }

    #[cfg(feature = "candle-cuda")]
    fn rooms(&self) -> Result<Vec<Room>, ScienceError> {
        let gpus = self.gpus.iter().map(|gpu| Room::gpu(*gpu)).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(gpus.into_iter().chain([Room::cpu()]).collect())
    }

    #[cfg(not(feature = "candle-cuda"))]
    fn rooms(&self) -> Result<Vec<Room>, ScienceError> {
        // None of them can hold a tensor of candle's.
        let _ = &self.gpus;
        Ok(vec![Room::cpu()])
    }
}

fn less(room: Room, bytes: u64) -> Room {
    Room { bytes: room.bytes.saturating_sub(bytes), ..room }
}

/// Bytes that passes take beside the weights, roughly: for each token that goes through the model some ten times the residual
/// stream and three times the hidden layer of an MLP; where rows go on from there, also what every layer caches (a state for
/// every prompt of sixteen tokens, or keys and values), and logits of the prompts. What fine-tuning keeps between its blocks is
/// no more than that.
fn beside(config: &Config) -> u64 {
    const PROMPT: usize = 16;
    let cached = match &config.mixer {
        MixerConfig::Attention(attention) => 2 * attention.groups * attention.head,
        MixerConfig::Mamba2(mamba) => mamba.heads * mamba.head * mamba.state / PROMPT,
    };
    let hidden = config.mlp.as_ref().map_or(0, |mlp| mlp.inner);
    let passing = 10 * config.width + 3 * hidden;
    let going_on = passing + config.layers * cached + config.vocabulary / PROMPT;
    (size_of::<f32>() * (TOKENS * going_on).max(TOKENS_TOGETHER * passing)) as u64
}

fn tokenizer(files: &Files) -> Result<Tokenizer, ScienceError> {
    match (files.gguf(), files.folder()) {
        (Some(gguf), _) => {
            let found = gguf.tokenizer()?;
            Ok(Tokenizer::new(found.tokenizer, None, found.ends)?)
        }
        (None, folder) => Ok(Tokenizer::from_folder(folder.unwrap_or(Path::new("")))?),
    }
}

/// What the model is: the digest of its files.
///
/// # Errors
/// As [`Models::get`].
pub(crate) fn digest(spec: &PretrainedSpec) -> Result<Digest, ScienceError> {
    Ok(found(spec)?.1)
}

fn found(spec: &PretrainedSpec) -> Result<(Files, Digest), ScienceError> {
    let files = Files::find(&spec.path, spec.revision.as_deref())?;
    let found = files.identity()?.digest;
    match spec.identity.as_ref().filter(|planned| planned.digest != found) {
        Some(planned) => Err(ScienceError::OtherModel { path: spec.path.clone(), planned: planned.digest, found }),
        None => Ok((files, found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use taskvec_model::job::Retry;

    #[test]
    fn there_must_be_room_for_a_pass_beside_the_weights() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/language/llama");
        let files = Files::find(folder, None).unwrap();
        let (weights, more) = (files.bytes(DType::F32), beside(files.config()));
        // Ten times 24 and three times 40 for each of 4096 tokens; with 3 layers of 2 × 2 heads of 8, and 61 / 16 logits, half
        // as many take less.
        assert_eq!(more, 4 * 4096 * (240 + 120));
        let deep = Config { layers: 30, ..files.config().clone() };
        assert_eq!(beside(&deep), 4 * 2048 * (30 * 32 + 240 + 120 + 3));
        let load = |bytes| files.load(DType::F32, &[less(Room { bytes, ..Room::cpu() }, more)]);
        assert!(load(weights + more).is_ok());
        let error = ScienceError::from(load(weights + more - 1).err().unwrap());
        assert!(error.to_string().contains("a machine with more memory"), "{error}");
        assert_eq!(error.retry(), Retry::Allowed, "another worker may have more");
    }
}
