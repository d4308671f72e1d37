//! One pass over inputs from a file, with everything it computes: for checks against other tools.

use crate::{
    ScienceError, checkpoint,
    data::Sequences,
    hook::{Capture, HookPoint, Tokens},
    load::{self, Files, Room},
    lora::peft,
    model::language::{Batch, LanguageModel, Logits},
};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, de::DeserializeOwned};
use std::{collections::HashMap, path::Path};
use taskvec_model::spec::{DataSpec, FloatType};

/// Runs the model at `model` over the inputs in `input` and writes `output`, a safetensors file of f32 tensors.
///
/// | model | input (JSON) | output |
/// | --- | --- | --- |
/// | a language model (see [`Files::find`]) | `input_ids` (B × T), `attention_mask` (B × T; absent: all ones) | `logits` (B, T, V), `hidden.0` … `hidden.L` (B, T, d) |
/// | a run's own checkpoint (`.safetensors`) | `x` (B × K × D), `y` (B × K) | `predictions` (B, K), `hidden.0` … `hidden.L` (B, 2K, d) |
///
/// `hidden.0` is the residual stream as it enters block 1, `hidden.i` as block i leaves it, before the final norm. Rows of
/// `input_ids` may be padded on either side; the mask says where. Positions count from the first token that is no padding,
/// and what belongs to padding is zero in the output. `dtype` is what a language model computes in; checkpoints are f32. A
/// language model may have the adapters of a folder, as [`peft::read`] reads them.
///
/// # Errors
/// Where the model or the input cannot be read, or do not belong together.
pub fn forward_file(
    model: &str,
    revision: Option<&str>,
    adapter: Option<&Path>,
    input: &Path,
    output: &Path,
    dtype: FloatType,
) -> Result<(), ScienceError> {
    let is_checkpoint = Path::new(model).extension().is_some_and(|e| e == "safetensors");
    let tensors = match (is_checkpoint, adapter) {
        (true, None) => synthetic(Path::new(model), input)?,
        (true, Some(adapter)) => {
            return Err(bad(adapter, format!("cannot be put into {model}: adapters are for language models")));
        }
        (false, adapter) => {
            let inputs = Padded::read(input)?;
            let mut network = Files::find(model, revision)?.load(load::dtype(dtype), &[Room::cpu()])?;
            if let Some(folder) = adapter {
                network = network.with_adapters(&peft::read(folder, &network)?)?;
            }
            language(&network, &inputs)?
        }
    };
    candle_core::safetensors::save(&tensors, output).map_err(|e| bad(output, format!("cannot be written: {e}")))
}

fn bad(path: &Path, reason: impl Into<String>) -> ScienceError {
    ScienceError::BadInput { path: path.to_owned(), reason: reason.into() }
}

fn read<T: DeserializeOwned>(path: &Path, wanted: &str) -> Result<T, ScienceError> {
    let bytes = std::fs::read(path).map_err(|e| bad(path, format!("cannot be read: {e}")))?;
    serde_json::from_slice(&bytes).map_err(|e| bad(path, format!("is not {wanted}: {e}")))
}

/// The capture of the residual stream around all blocks.
fn around_blocks(layers: usize) -> Capture {
    Capture::new((0..=layers).map(HookPoint::hidden), Tokens::all())
}

/// Rows of tokens, padded to one length.
struct Padded {
    batch: Batch,
    /// Of every place in (B, T), which of the batch's tokens is there.
    tokens: Vec<Option<usize>>,
    shape: (usize, usize),
}

impl Padded {
    fn read(path: &Path) -> Result<Self, ScienceError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Input {
            input_ids: Vec<Vec<u32>>,
            attention_mask: Option<Vec<Vec<u8>>>,
        }
        let input: Input =
            read(path, "an input for a language model ({\"input_ids\": [[…]], \"attention_mask\": [[…]]})")?;
        let ids = input.input_ids;
        let length = ids.first().map_or(0, Vec::len);
        let mask = input.attention_mask.unwrap_or_else(|| ids.iter().map(|row| vec![1; row.len()]).collect());
        if ids.iter().any(|row| row.len() != length) || ids.iter().map(Vec::len).ne(mask.iter().map(Vec::len)) {
            return Err(bad(path, "has rows of different lengths; pad `input_ids` and give `attention_mask` like it"));
        }
        let mut rows = Vec::with_capacity(ids.len());
        let (mut tokens, mut next) = (Vec::with_capacity(ids.len() * length), 0);
        for (i, (ids, mask)) in ids.iter().zip(&mask).enumerate() {
            let kept = ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id);
            rows.push(kept.collect::<Vec<u32>>());
            let changes = mask.windows(2).filter(|w| w[0] != w[1]).count();
            let in_one_piece = changes < 2 || (changes == 2 && mask[0] == 0);
            if rows[i].is_empty() || !in_one_piece || mask.iter().any(|m| *m > 1) {
                return Err(bad(path, format!("row {i} of `attention_mask` is not one run of ones between zeros")));
            }
            for m in mask {
                tokens.push((*m == 1).then_some(next));
                next += usize::from(*m);
            }
        }
        let shape = (ids.len(), length);
        Ok(Self { batch: Batch::new(rows).map_err(|e| bad(path, e.to_string()))?, tokens, shape })
    }

    /// (N, …) of the batch's tokens to (B, T, …) in f32, zero where there is padding.
    fn padded(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (n, width) = x.dims2()?;
        let x = Tensor::cat(&[&x.to_dtype(DType::F32)?, &Tensor::zeros((1, width), DType::F32, x.device())?], 0)?;
        let from: Vec<u32> = self.tokens.iter().map(|token| token.unwrap_or(n) as u32).collect();
        x.index_select(&Tensor::new(from, x.device())?, 0)?.reshape((self.shape.0, self.shape.1, width))
    }
}

fn language(network: &LanguageModel, inputs: &Padded) -> Result<HashMap<String, Tensor>, ScienceError> {
    let layers = network.config().layers;
    let mut capture = around_blocks(layers);
    let logits = network.forward(&inputs.batch, None, Some(&mut capture), Logits::All)?;
    let mut out = HashMap::new();
    if let Some(logits) = logits {
        out.insert("logits".to_owned(), inputs.padded(&logits)?);
    }
    for layer in 0..=layers {
        out.insert(format!("hidden.{layer}"), inputs.padded(&capture.take(HookPoint::hidden(layer))?)?);
    }
    Ok(out)
}

fn synthetic(path: &Path, input: &Path) -> Result<HashMap<String, Tensor>, ScienceError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        x: Vec<Vec<Vec<f32>>>,
        y: Vec<Vec<f32>>,
    }
    let checkpoint = checkpoint::read(path, &Device::Cpu)?;
    let DataSpec::SparseLinear(data) = checkpoint.header.run.data;
    let Input { x, y } = read(input, "an input for a synthetic model ({\"x\": [[[…]]], \"y\": [[…]]})")?;
    let (examples, dim) = (data.examples as usize, data.dim as usize);
    let fits = x.len() == y.len() && x.iter().all(|row| row.len() == examples && row.iter().all(|v| v.len() == dim));
    if x.is_empty() || !fits || y.iter().any(|row| row.len() != examples) {
        let wanted =
            format!("`x` must be B × {examples} × {dim} and `y` B × {examples} for this checkpoint, B at least 1");
        return Err(bad(input, wanted));
    }
    let sequences = Sequences {
        data,
        basis: vec![0; x.len()],
        weights: Vec::new(),
        x: x.into_iter().flatten().flatten().collect(),
        y: y.into_iter().flatten().collect(),
    };
    let network = checkpoint.network;
    let (layers, width) = (network.sizes().layers, network.sizes().width);
    let mut capture = around_blocks(layers);
    let predictions = network.forward(&sequences.tokens(&Device::Cpu)?, Some(&mut capture))?;
    let mut out = HashMap::from([("predictions".to_owned(), predictions)]);
    for layer in 0..=layers {
        let hidden = capture.take(HookPoint::hidden(layer))?.reshape((sequences.len(), 2 * examples, width))?;
        out.insert(format!("hidden.{layer}"), hidden);
    }
    Ok(out)
}
