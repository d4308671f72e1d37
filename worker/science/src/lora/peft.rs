//! Adapters as folders that HuggingFace's PEFT reads and writes: `adapter_config.json` and `adapter_model.safetensors`.

use super::{
    adapters::{Adapters, Form},
    checkpoint::{self, Header},
    module::modules,
};
use crate::{ScienceError, checkpoint::file::Contents, model::language::LanguageModel};
use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use taskvec_model::job::Purpose;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The keys that PEFT 0.21.2 writes whose values are always the same here. Older versions say which they do not know, and go
/// on without.
const DEFAULTS: &str = include_str!("peft_config.json");

/// What would change the adapters' numbers or parameters, with the values at which it does not.
const PLAIN: [(&str, &[&str]); 13] = [
    ("use_dora", &["false"]),
    ("use_rslora", &["false"]),
    ("use_qalora", &["false"]),
    ("lora_bias", &["false"]),
    ("bias", &["\"none\""]),
    ("rank_pattern", &["{}"]),
    ("alpha_pattern", &["{}"]),
    ("modules_to_save", &["[]"]),
    ("target_parameters", &["[]"]),
    ("trainable_token_indices", &["[]", "{}"]),
    ("layer_replication", &["[]"]),
    ("alora_invocation_tokens", &["[]"]),
    ("arrow_config", &[]),
];

/// Writes an adapter checkpoint as a folder for PEFT, which is created where it is not there.
///
/// # Errors
/// [`ScienceError::BadCheckpoint`] where the file is not one of adapters, or one to resume from; [`ScienceError::Write`].
pub fn write_folder(checkpoint: &Path, folder: &Path) -> Result<(), ScienceError> {
    let bad = |reason| ScienceError::BadCheckpoint { path: checkpoint.to_owned(), reason };
    let bytes = std::fs::read(checkpoint).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let contents = Contents::parse(&bytes).map_err(bad)?;
    let header = checkpoint::header(&contents).map_err(|e| bad(format!("holds no adapters: it {e}")))?;
    if header.purpose != Purpose::Weights {
        return Err(bad("is a state to resume from; take the weights of the step".to_owned()));
    }
    std::fs::create_dir_all(folder)?;
    let config = configuration(&header).and_then(|config| serde_json::to_string_pretty(&config));
    let mut config = config.map_err(std::io::Error::from)?;
    config.push('\n');
    std::fs::write(folder.join(CONFIG), config)?;
    std::fs::write(folder.join(WEIGHTS), &bytes)?;
    Ok(())
}

/// The configuration that belongs to a file of adapters, with every key that PEFT writes.
fn configuration(header: &Header) -> serde_json::Result<Value> {
    let (base, lora) = (&header.base, &header.run.lora);
    let all = base.layers as u32;
    let layers = lora.layers.resolve(all).filter(|range| *range != (1, all));
    let whole = lora.alpha.fract() == 0.0;
    let mut config: Map<String, Value> = serde_json::from_str(DEFAULTS)?;
    for (key, value) in [
        ("base_model_name_or_path", json!(base.path)),
        ("revision", json!(base.revision)),
        // The weights of GPT-2 are (inputs, outputs).
        ("fan_in_fan_out", json!(base.arch == "gpt2")),
        ("layers_to_transform", json!(layers.map(|(from, to)| (from - 1..to).collect::<Vec<_>>()))),
        ("lora_alpha", if whole { json!(lora.alpha as i64) } else { json!(lora.alpha) }),
        ("lora_dropout", json!(lora.dropout)),
        ("r", json!(lora.rank)),
        ("target_modules", json!(lora.targets)),
    ] {
        config.insert(key.to_owned(), value);
    }
    Ok(Value::Object(config))
}

/// What is read of a configuration. Which modules have adapters the tensors say themselves.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Reads a folder that PEFT, or [`write_folder`], has written, for `model`.
///
/// # Errors
/// [`ScienceError::BadCheckpoint`] where a file is missing or damaged, the configuration asks for what is not built here
/// (DoRA, ranks of their own for some modules, …), or the tensors do not fit the model.
pub fn read(folder: &Path, model: &LanguageModel) -> Result<Adapters, ScienceError> {
    let (config, weights) = (folder.join(CONFIG), folder.join(WEIGHTS));
    let text = std::fs::read(&config).map_err(|e| bad(&config, format!("cannot be read: {e}")))?;
    let form = form(&text).map_err(|reason| bad(&config, reason))?;
    if !weights.is_file() && folder.join("adapter_model.bin").is_file() {
        let reason = "is not there, but adapter_model.bin is, which is not read here: save it again with a newer PEFT";
        return Err(bad(&weights, reason.to_owned()));
    }
    let tensors = candle_core::safetensors::load(&weights, &Device::Cpu)
        .map_err(|e| bad(&weights, format!("cannot be read: {e}")))?;
    fitted(tensors.into_iter().collect(), form, model).map_err(|reason| bad(&weights, reason))
}

fn bad(path: &Path, reason: String) -> ScienceError {
    ScienceError::BadCheckpoint { path: PathBuf::from(path), reason }
}

fn form(config: &[u8]) -> Result<Form, String> {
    let config: Config = serde_json::from_slice(config).map_err(|e| format!("is no configuration of LoRA: {e}"))?;
    if config.peft_type != "LORA" || config.r == 0 {
        return Err(format!("is of type {} and rank {}, not of LoRA", config.peft_type, config.r));
    }
    for (key, plain) in PLAIN {
        match config.rest.get(key) {
            None | Some(Value::Null) => {}
            Some(value) if plain.contains(&value.to_string().as_str()) => {}
            Some(value) => return Err(format!("asks for `{key}`: {value}, which is not built here")),
        }
    }
    Ok(Form { rank: config.r, alpha: config.lora_alpha })
}

/// The adapters whose tensors these are.
fn fitted(mut tensors: BTreeMap<String, Tensor>, form: Form, model: &LanguageModel) -> Result<Adapters, String> {
    let mut modules = modules(model);
    modules.retain(|m| tensors.contains_key(&m.parameter('A')) || tensors.contains_key(&m.parameter('B')));
    let adapters = Adapters::build(modules, form, |name, shape| {
        let tensor = tensors.remove(name).ok_or_else(|| format!("lacks the tensor `{name}`"))?;
        if tensor.dims() != shape {
            return Err(format!("has `{name}` as {:?} where {shape:?} is wanted", tensor.dims()));
        }
        tensor.to_dtype(crate::model::language::wide(model.dtype())).map_err(|e| format!("`{name}`: {e}"))
    })?;
    match tensors.keys().next() {
        Some(name) => Err(format!("has `{name}`, for which the model has no place")),
        None if adapters.parameters().is_empty() => Err("holds no adapters".to_owned()),
        None => Ok(adapters),
    }
}
