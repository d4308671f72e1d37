//! Pretrained models that jobs share: the one used last stays in memory, since the jobs of a run come one after the other.

use crate::{
    ScienceError,
    analysis::natural::Reader,
    load::{self, Files, Room},
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
    last: Mutex<Option<(Key, Arc<Reader>)>>,
}

type Key = (Digest, FloatType);

impl Models {
    /// The model that `spec` means, from memory or from its files. Only one is loaded at a time.
    ///
    /// # Errors
    /// Where its files cannot be read, or are not those that the sweep was planned with.
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
        let model = files.load(load::dtype(spec.dtype), &[Room::cpu()])?;
        let reader = Arc::new(Reader { model, tokenizer });
        *last = Some((key, Arc::clone(&reader)));
        Ok(reader)
    }
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
