//! Adapters as safetensors files, for analysis or to go on training from.
//!
//! The tensors have PEFT's names, so that the file is what PEFT calls `adapter_model.safetensors`; a resume file adds Adam's
//! moments as `adam.m.NAME` and `adam.v.NAME`. The metadata names the run and the model, from which [`super::peft`] writes
//! the configuration that belongs to it. The same state always gives the same bytes.

use super::{
    adapters::{Adapters, Form},
    module::selected,
};
use crate::{
    ScienceError,
    checkpoint::file::{self, Contents},
    model::language::LanguageModel,
    optim::Moments,
};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::{io::Write, path::Path};
use taskvec_model::{
    id::Digest,
    job::Purpose,
    spec::{LoraLayers, LoraSpec, NaturalSpec, PretrainedSpec},
};

/// Raised when a file of this version could not be read by older code.
const FORMAT: u32 = 1;

/// Which run adapters belong to. Files of others are named by their contents, wherever they lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub seed: u64,
    /// Of the model's files.
    pub model: Digest,
    pub data: NaturalSpec,
    /// Its layers are a range.
    pub lora: LoraSpec,
}

/// The model that adapters are for, as far as a reader of the file needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Base {
    /// As the sweep names it.
    pub path: String,
    pub revision: Option<String>,
    pub arch: String,
    /// Number of blocks.
    pub layers: usize,
}

/// What a file says about itself, in its metadata under `taskvec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub format: u32,
    pub purpose: Purpose,
    pub step: u64,
    pub base: Base,
    #[serde(flatten)]
    pub run: Identity,
}

impl Identity {
    /// `data` is that of training: its shots are those of the examples.
    pub fn new(seed: u64, model: Digest, data: &NaturalSpec, lora: &LoraSpec, layers: usize) -> Self {
        let (mut data, mut lora) = (data.clone(), lora.clone());
        if let Some(file) = data.family.file_mut().filter(|file| file.digest.is_some()) {
            file.path.clear();
        }
        if let Some((from, to)) = lora.layers.resolve(layers as u32) {
            lora.layers = LoraLayers::Range(from, to);
        }
        lora.targets.sort_unstable();
        Self { seed, model, data, lora }
    }
}

impl Header {
    pub fn new(purpose: Purpose, step: u64, spec: &PretrainedSpec, model: &LanguageModel, run: &Identity) -> Self {
        let base = Base {
            path: spec.path.clone(),
            revision: spec.revision.clone(),
            arch: model.config().arch.to_owned(),
            layers: model.config().layers,
        };
        Self { format: FORMAT, purpose, step, base, run: run.clone() }
    }
}

/// Adapters, read.
pub(super) struct Saved {
    pub header: Header,
    pub adapters: Adapters,
    /// One per parameter in a resume file, none in a file of weights.
    pub moments: Vec<Moments>,
}

/// Writes the state that `header` describes, with `moments` where it is one to go on from.
pub(super) fn write(
    out: &mut dyn Write,
    header: &Header,
    adapters: &Adapters,
    moments: Option<&[Moments]>,
) -> Result<(), ScienceError> {
    let mut tensors: Vec<(String, &Tensor)> = Vec::new();
    for (i, (name, parameter)) in adapters.parameters().iter().enumerate() {
        tensors.push((name.clone(), parameter));
        if let Some(moments) = moments {
            tensors.push((format!("adam.m.{name}"), &moments[i].m));
            tensors.push((format!("adam.v.{name}"), &moments[i].v));
        }
    }
    file::write(out, header, tensors)
}

/// Reads adapters for `model`, whose files have the digest `digest`.
///
/// # Errors
/// [`ScienceError::BadCheckpoint`] where the file cannot be read, is damaged, is for another purpose or of another model, or
/// has a tensor too few, too many or of another shape than its header says.
fn read(path: &Path, purpose: Purpose, model: &LanguageModel, digest: Digest) -> Result<Saved, ScienceError> {
    let bad = |reason| ScienceError::BadCheckpoint { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    parse(&bytes, purpose, model, digest).map_err(bad)
}

fn parse(bytes: &[u8], purpose: Purpose, model: &LanguageModel, digest: Digest) -> Result<Saved, String> {
    let mut contents = Contents::parse(bytes)?;
    let header = header(&contents)?;
    let wrong = |what: &str, found: String, wanted: String| {
        Err(format!("is of another run or purpose: its {what} is {found}, wanted {wanted}"))
    };
    if header.purpose != purpose {
        return wrong("purpose", header.purpose.to_string(), purpose.to_string());
    }
    if header.run.model != digest {
        return wrong("model", header.run.model.to_string(), digest.to_string());
    }
    let lora = &header.run.lora;
    let modules = selected(model, lora).map_err(|e| e.to_string())?;
    let device = &Device::Cpu;
    let adapters = Adapters::build(modules, Form::of(lora), |name, shape| contents.take(name, &shape, device))?;
    let mut moments = Vec::new();
    if purpose == Purpose::Resume {
        for (name, parameter) in adapters.parameters() {
            let m = contents.take(&format!("adam.m.{name}"), parameter.dims(), device)?;
            let v = contents.take(&format!("adam.v.{name}"), parameter.dims(), device)?;
            moments.push(Moments { m, v });
        }
    }
    contents.nothing_left()?;
    Ok(Saved { header, adapters, moments })
}

/// What a file says about itself.
pub(super) fn header(contents: &Contents<'_>) -> Result<Header, String> {
    let header: Header = contents.header()?;
    match header.format {
        FORMAT => Ok(header),
        other => Err(format!("has format {other}; this program reads format {FORMAT}")),
    }
}

/// Reads the state of `run` to go on from.
///
/// # Errors
/// As [`read`], and where it belongs to another run.
pub(super) fn read_resume(path: &Path, run: &Identity, model: &LanguageModel) -> Result<Saved, ScienceError> {
    let saved = read(path, Purpose::Resume, model, run.model)?;
    let found = &saved.header.run;
    let wrong = |what: &str, found: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
        let reason = format!("is of another run: its {what} is {found:?}, wanted {wanted:?}");
        Err(ScienceError::BadCheckpoint { path: path.to_owned(), reason })
    };
    if found.seed != run.seed {
        return wrong("seed", &found.seed, &run.seed);
    }
    if found.lora != run.lora {
        return wrong("lora", &found.lora, &run.lora);
    }
    if found.data != run.data {
        return wrong("data", &found.data, &run.data);
    }
    Ok(saved)
}

/// Reads adapters of a run with this seed, to be analysed with the model whose files have the digest `digest`.
///
/// # Errors
/// As [`read`], and where they belong to another seed.
pub(crate) fn read_weights(
    path: &Path,
    model: &LanguageModel,
    digest: Digest,
    seed: u64,
) -> Result<Adapters, ScienceError> {
    let saved = read(path, Purpose::Weights, model, digest)?;
    let found = saved.header.run.seed;
    if found != seed {
        let reason = format!("is of another run: its seed is {found}, wanted {seed}");
        return Err(ScienceError::BadCheckpoint { path: path.to_owned(), reason });
    }
    Ok(saved.adapters)
}
