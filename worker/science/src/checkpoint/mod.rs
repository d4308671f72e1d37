//! Checkpoints as safetensors files: weights for analysis, or the whole state from which training goes on.
//!
//! A file explains itself: its metadata names format, purpose, step, seed, model and data. Weights are stored under the
//! names of [`crate::model`]; a resume file adds Adam's moments as `adam.m.NAME` and `adam.v.NAME`. There is no random
//! state to keep: batches are functions of (seed, step). The same state always gives the same bytes.

pub(crate) mod file;

use crate::{
    ScienceError,
    model::{Sizes, Transformer},
    optim::Moments,
};
use candle_core::{Device, Tensor};
use file::Contents;
use serde::{Deserialize, Serialize};
use std::{io::Write, path::Path};
use taskvec_model::{
    job::Purpose,
    spec::{DataSpec, ModelSpec},
};

/// Raised when a file of this version could not be read by older code.
const FORMAT: u32 = 1;

/// Which run a state belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub seed: u64,
    pub model: ModelSpec,
    pub data: DataSpec,
}

/// What a file says about itself, in its metadata under `taskvec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    pub purpose: Purpose,
    pub step: u64,
    #[serde(flatten)]
    pub run: Identity,
}

/// A checkpoint, read.
pub struct Checkpoint {
    pub header: Header,
    /// Its parameters are no variables: no gradients are tracked.
    pub network: Transformer,
    /// One per parameter in a resume file, none in a file of weights.
    pub moments: Vec<Moments>,
}

/// Writes the state after `step`: with `moments`, one to resume from; without, weights alone.
pub fn write(
    out: &mut dyn Write,
    run: &Identity,
    step: u64,
    network: &Transformer,
    moments: Option<&[Moments]>,
) -> Result<(), ScienceError> {
    let purpose = if moments.is_some() { Purpose::Resume } else { Purpose::Weights };
    let header = Header { format: FORMAT, purpose, step, run: run.clone() };
    let mut tensors: Vec<(String, &Tensor)> = Vec::new();
    for (i, (name, parameter)) in network.parameters().iter().enumerate() {
        tensors.push((name.clone(), parameter));
        if let Some(moments) = moments {
            tensors.push((format!("adam.m.{name}"), &moments[i].m));
            tensors.push((format!("adam.v.{name}"), &moments[i].v));
        }
    }
    file::write(out, &header, tensors)
}

/// Reads a checkpoint of any run.
///
/// # Errors
/// [`ScienceError::BadCheckpoint`] where the file cannot be read, is damaged, or has a tensor too few, too many or of
/// another shape than its header says.
pub fn read(path: &Path, device: &Device) -> Result<Checkpoint, ScienceError> {
    let bad = |reason| ScienceError::BadCheckpoint { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    parse(&bytes, device).map_err(bad)
}

fn parse(bytes: &[u8], device: &Device) -> Result<Checkpoint, String> {
    let mut contents = Contents::parse(bytes)?;
    let header: Header = contents.header()?;
    if header.format != FORMAT {
        return Err(format!("has format {}; this program reads format {FORMAT}", header.format));
    }
    let sizes = Sizes::new(&header.run.model, &header.run.data);
    let network = Transformer::build(sizes, |name, shape| contents.take(name, shape, device))?;
    let mut moments = Vec::new();
    if header.purpose == Purpose::Resume {
        for (name, parameter) in network.parameters() {
            let m = contents.take(&format!("adam.m.{name}"), parameter.dims(), device)?;
            let v = contents.take(&format!("adam.v.{name}"), parameter.dims(), device)?;
            moments.push(Moments { m, v });
        }
    }
    contents.nothing_left()?;
    Ok(Checkpoint { header, network, moments })
}

/// Reads a checkpoint that must be one of `run`, for `purpose`.
///
/// # Errors
/// As [`read`], and where it belongs to another run or purpose.
pub fn read_of(path: &Path, run: &Identity, purpose: Purpose, device: &Device) -> Result<Checkpoint, ScienceError> {
    let checkpoint = read(path, device)?;
    let header = &checkpoint.header;
    let wrong = |what: &str, found: String, wanted: String| {
        let reason = format!("is of another run or purpose: its {what} is {found}, wanted {wanted}");
        Err(ScienceError::BadCheckpoint { path: path.to_owned(), reason })
    };
    if header.purpose != purpose {
        return wrong("purpose", header.purpose.to_string(), purpose.to_string());
    }
    if header.run.seed != run.seed {
        return wrong("seed", header.run.seed.to_string(), run.seed.to_string());
    }
    if header.run.model != run.model {
        return wrong("model", format!("{:?}", header.run.model), format!("{:?}", run.model));
    }
    if header.run.data != run.data {
        return wrong("data", format!("{:?}", header.run.data), format!("{:?}", run.data));
    }
    Ok(checkpoint)
}
