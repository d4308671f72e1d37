//! GGUF files, llama.cpp's format: one file with weights, configuration and tokenizer.
//!
//! A file is read as the checkpoint that it was made from: tensors under HuggingFace's names and in its layout, the
//! configuration as its `config.json`. Weights are dequantised, one tensor at a time; no more than a few MiB of a file are
//! in memory beside what is asked for.

mod config;
mod metadata;
mod names;
mod split;
mod tokenizer;

pub use tokenizer::GgufTokenizer;

use super::{LoadError, Weights, vocabulary};
use candle_core::{
    DType, Device, Result as CandleResult, Shape, Tensor,
    quantized::{
        GgmlDType,
        gguf_file::{Content, TensorInfo},
    },
};
use metadata::Metadata;
use names::{Change, Named, named};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Elements dequantised at a time.
const CHUNK: usize = 1 << 18;

/// The only tensor that is no weight: what each frequency of the rotary positions is divided by (Llama 3.1).
const ROTARY_FACTORS: &str = "rope_freqs.weight";

/// Types of tensors that are read.
const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K";

/// Architectures, by their names in `general.architecture`, which are those in `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Llama,
    Gemma2,
    Olmo,
    Olmo2,
    Gpt2,
    Mamba2,
}

impl Arch {
    const ALL: [Self; 6] = [Self::Llama, Self::Gemma2, Self::Olmo, Self::Olmo2, Self::Gpt2, Self::Mamba2];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Gemma2 => "gemma2",
            Self::Olmo => "olmo",
            Self::Olmo2 => "olmo2",
            Self::Gpt2 => "gpt2",
            Self::Mamba2 => "mamba2",
        }
    }
}

/// An open file, its header read.
pub struct Gguf {
    path: PathBuf,
    file: Mutex<File>,
    content: Content,
    config: serde_json::Value,
    /// By the checkpoint's name.
    tensors: BTreeMap<String, Stored>,
    shapes: BTreeMap<String, Vec<usize>>,
}

/// Where a tensor of the checkpoint is.
struct Stored {
    name: String,
    change: Change,
}

impl Gguf {
    /// Reads the header.
    ///
    /// # Errors
    /// Where the file is no GGUF file or is cut off, where its architecture or the type of a tensor is not known, or where
    /// it has a tensor that its architecture has not.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(LoadError::io(path))?;
        let bytes = file.metadata().map_err(LoadError::io(path))?.len();
        let bad = |reason| LoadError::BadFile { path: path.to_owned(), reason };
        let content = Content::read(&mut BufReader::new(&file)).map_err(|e| bad(unreadable(&e)))?;
        let metadata = Metadata::new(&content.metadata).map_err(bad)?;
        let arch = architecture(path, metadata)?;
        let tensors = tensors(arch, &content, bytes).map_err(bad)?;
        let shape = |(name, stored): (&String, &Stored)| {
            (name.clone(), stored.change.shape(content.tensor_infos[&stored.name].shape.dims()))
        };
        let shapes = tensors.iter().map(shape).collect();
        let config = of_tensors(&content).and_then(|tensors| config::config(arch, metadata, tensors)).map_err(bad)?;
        let mut gguf = Self { path: path.to_owned(), file: Mutex::new(file), content, config, tensors, shapes };
        gguf.add_rotary_factors()?;
        Ok(gguf)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the `config.json` of the checkpoint said, as transformers 5 writes it; but where the file has a factor for each
    /// frequency of the rotary positions, which is all that it has of Llama 3.1's scaling, `rope_parameters` lists them.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// Shapes of all weights by the checkpoint's names.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// The weights in `dtype` on `device`.
    pub fn weights(&self, dtype: DType) -> GgufWeights<'_> {
        GgufWeights { gguf: self, dtype }
    }

    /// The tokenizer of a file that need not have a model in it.
    ///
    /// # Errors
    /// Where the file is no GGUF file or is cut off, or has no tokenizer, or one of a kind that is not known.
    pub fn vocabulary(path: &Path) -> Result<GgufTokenizer, LoadError> {
        let bad = |reason| LoadError::BadFile { path: path.to_owned(), reason };
        let file = File::open(path).map_err(LoadError::io(path))?;
        let content = Content::read(&mut BufReader::new(&file)).map_err(|e| bad(unreadable(&e)))?;
        Metadata::new(&content.metadata).and_then(tokenizer::tokenizer).map_err(bad)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// Where the file has none, or one of a kind that is not known.
    pub fn tokenizer(&self) -> Result<GgufTokenizer, LoadError> {
        let read = Metadata::new(&self.content.metadata).and_then(tokenizer::tokenizer);
        let read = read.map_err(|reason| LoadError::BadFile { path: self.path.clone(), reason })?;
        let (tokens, vocabulary) =
            (read.tokenizer.get_vocab_size(true), self.config["vocab_size"].as_u64().unwrap_or(0) as usize);
        match vocabulary::fits(tokens, vocabulary) {
            false => Err(LoadError::Vocabulary { path: self.path.clone(), tokens, vocabulary }),
            true => Ok(read),
        }
    }

    fn add_rotary_factors(&mut self) -> Result<(), LoadError> {
        let Some(info) = self.content.tensor_infos.get(ROTARY_FACTORS) else { return Ok(()) };
        let read = self.part(info, info.offset, info.shape.clone(), DType::F32);
        let factors = read.and_then(|t| t.flatten_all()?.to_vec1::<f32>());
        let factors = factors.map_err(|e| self.unreadable(ROTARY_FACTORS, &e))?;
        let rotary = &mut self.config["rope_parameters"];
        rotary["rope_type"] = "factors".into();
        rotary["factors"] = factors.into();
        Ok(())
    }

    fn unreadable(&self, tensor: &str, error: &candle_core::Error) -> LoadError {
        LoadError::BadFile {
            path: self.path.clone(),
            reason: format!("has a tensor `{tensor}` that cannot be read: {error}"),
        }
    }

    fn weight(&self, name: &str, rows: Range<usize>, dtype: DType) -> Result<Tensor, LoadError> {
        let Stored { name: stored, change } = &self.tensors[name];
        let info = &self.content.tensor_infos[stored];
        let read = || {
            if change.keeps_rows() {
                return change.undo(self.dequantised(info, rows.clone(), dtype)?, |_| 1);
            }
            // What changes the values is done in f32, whatever they are kept in.
            let all = info.shape.dims().first().copied().unwrap_or(1);
            let stored = self.dequantised(info, 0..all, DType::F32)?;
            let whole = change.undo(stored, |rows| self.heads(rows))?;
            whole.narrow(0, rows.start, rows.len())?.contiguous()?.to_dtype(dtype)
        };
        read().map_err(|e| self.unreadable(stored, &e))
    }

    fn heads(&self, rows: names::Rows) -> usize {
        let key = match rows {
            names::Rows::Queries => "num_attention_heads",
            names::Rows::Keys => "num_key_value_heads",
        };
        self.config[key].as_u64().map_or(1, |n| n as usize)
    }

    /// Rows of a tensor as it is stored, a few at a time. A tensor of one dimension has one element in each row.
    fn dequantised(&self, info: &TensorInfo, rows: Range<usize>, dtype: DType) -> CandleResult<Tensor> {
        let dims = info.shape.dims();
        let columns: usize = dims.iter().skip(1).product();
        let (block, size) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
        if dims.len() < 2 {
            let whole = self.part(info, info.offset, info.shape.clone(), dtype)?;
            return whole.narrow(0, rows.start, rows.len());
        }
        let part = |from: usize, count: usize| {
            let offset = info.offset + (from * columns / block * size) as u64;
            self.part(info, offset, Shape::from((count, columns)), dtype)
        };
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(dims.iter().skip(1).copied()).collect();
        let at_once = (CHUNK / columns.max(1)).max(1);
        if rows.len() <= at_once {
            return part(rows.start, rows.len())?.reshape(shape);
        }
        let whole = Tensor::zeros((rows.len(), columns), dtype, &Device::Cpu)?;
        for from in rows.clone().step_by(at_once) {
            whole.slice_set(&part(from, at_once.min(rows.end - from))?, 0, from - rows.start)?;
        }
        whole.reshape(shape)
    }

    fn part(&self, of: &TensorInfo, offset: u64, shape: Shape, dtype: DType) -> CandleResult<Tensor> {
        let part = TensorInfo { ggml_dtype: of.ggml_dtype, shape, offset };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = part.read(&mut *file, self.content.tensor_data_offset, &Device::Cpu)?;
        stored.dequantize(&Device::Cpu)?.to_dtype(dtype)
    }
}

/// The tensors of [`Gguf`] in one type.
pub struct GgufWeights<'a> {
    gguf: &'a Gguf,
    dtype: DType,
}

impl Weights for GgufWeights<'_> {
    fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.gguf.shapes
    }

    fn file(&self, _: &str) -> PathBuf {
        self.gguf.path.clone()
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Tensor, LoadError> {
        self.gguf.weight(name, rows, self.dtype)
    }

    fn dtype(&self) -> DType {
        self.dtype
    }
}

/// Is this a GGUF file, by its name or by its first bytes?
pub(super) fn is_one(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
    };
    path.is_file() && (path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) || begins())
}

/// The library numbers types that it does not know, and says no more.
fn unreadable(error: &candle_core::Error) -> String {
    let text = error.to_string();
    // Where RUST_BACKTRACE is set, more lines follow.
    let reason = text.lines().next().unwrap_or_default();
    let hint = if reason.contains("unknown dtype") { "; types that are read are " } else { "" };
    format!("is no GGUF file that can be read: {reason}{hint}{}", if hint.is_empty() { "" } else { SUPPORTED })
}

fn architecture(path: &Path, metadata: Metadata<'_>) -> Result<Arch, LoadError> {
    let bad = |reason| LoadError::BadFile { path: path.to_owned(), reason };
    if let Some(parts) = metadata.count_if("split.count").map_err(bad)?.filter(|n| *n > 1) {
        return Err(bad(format!(
            "is one of {parts} parts; join them with llama.cpp: llama-gguf-split --merge FIRST ALL"
        )));
    }
    let found = metadata.arch();
    Arch::ALL.into_iter().find(|arch| arch.as_str() == found).ok_or_else(|| LoadError::UnknownArchitecture {
        path: path.to_owned(),
        found: found.to_owned(),
        known: Arch::ALL.map(Arch::as_str).to_vec(),
    })
}

/// All weights, each of them complete.
fn tensors(arch: Arch, content: &Content, bytes: u64) -> Result<BTreeMap<String, Stored>, String> {
    let mut tensors = BTreeMap::new();
    for (stored, info) in &content.tensor_infos {
        complete(stored, info, content.tensor_data_offset, bytes)?;
        if stored == ROTARY_FACTORS {
            continue;
        }
        let unknown = || format!("has a tensor `{stored}`, which models of type {} have not", arch.as_str());
        let Named { name, change } = named(arch, stored).ok_or_else(unknown)?;
        tensors.insert(name, Stored { name: stored.clone(), change });
    }
    Ok(tensors)
}

/// Is all of a tensor in the file, in a type that can be read?
fn complete(name: &str, info: &TensorInfo, data: u64, file: u64) -> Result<(), String> {
    let (dtype, elements) = (info.ggml_dtype, info.shape.elem_count());
    if matches!(dtype, GgmlDType::Q8_1 | GgmlDType::Q8K) {
        return Err(format!("has `{name}` as {dtype:?}; types that are read are {SUPPORTED}"));
    }
    if info.shape.dims().last().is_some_and(|n| !n.is_multiple_of(dtype.block_size())) {
        return Err(format!("has `{name}` {:?} as {dtype:?}, whose blocks do not fill its rows", info.shape.dims()));
    }
    let size = (elements / dtype.block_size() * dtype.type_size()) as u64;
    match data.checked_add(info.offset).and_then(|start| start.checked_add(size)) {
        Some(end) if end <= file => Ok(()),
        _ => Err(format!("is cut short: it has {file} bytes, and `{name}` lies beyond; copy or download it again")),
    }
}

fn of_tensors(content: &Content) -> Result<config::Tensors, String> {
    let has = |name: &str| content.tensor_infos.contains_key(name);
    let embedding = content.tensor_infos.get("token_embd.weight").ok_or("lacks the tensor `token_embd.weight`")?;
    Ok(config::Tensors {
        vocabulary: embedding.shape.dims().first().copied().unwrap_or(0),
        tied: !has("output.weight"),
        attention_bias: has("blk.0.attn_q.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
        conv_bias: has("blk.0.ssm_conv1d.bias"),
    })
}
