//! `config.json` as transformers 4 and 5 write it.

mod fields;
mod gpt2;
mod llama;
mod olmo_original;

use super::{LoadError, names::Layout};
use crate::model::language::{Config, MixerConfig};
use fields::Fields;
use std::path::Path;

/// Values of `model_type` that are known.
const KNOWN: [&str; 6] = ["llama", "gemma2", "olmo", "hf_olmo", "olmo2", "gpt2"];

/// The architecture that a `config.json` describes, and how its weights are named.
///
/// # Errors
/// Where it is no such file, the type of model is unknown, or it asks for something that is not built here.
pub(super) fn read(path: &Path) -> Result<(Config, Layout), LoadError> {
    let bytes = std::fs::read(path).map_err(LoadError::io(path))?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| LoadError::config(path, format!("is not JSON: {e}")))?;
    let map = json.as_object().ok_or_else(|| LoadError::config(path, "is not a JSON object"))?;
    let fields = Fields::new(path, map);
    let kind: String = fields.required("model_type")?;
    let read = match kind.as_str() {
        "llama" => llama::llama(&fields)?,
        "gemma2" => llama::gemma2(&fields)?,
        "olmo2" => llama::olmo2(&fields)?,
        "gpt2" => gpt2::read(&fields)?,
        // The first checkpoints call both layouts `olmo`; only the original one has this key.
        "hf_olmo" => olmo_original::read(&fields)?,
        "olmo" if fields.has("d_model") => olmo_original::read(&fields)?,
        "olmo" => llama::olmo(&fields)?,
        _ => {
            return Err(LoadError::UnknownArchitecture { path: path.to_owned(), found: kind, known: KNOWN.to_vec() });
        }
    };
    check(&read.0).map_err(|reason| LoadError::config(path, reason))?;
    Ok(read)
}

/// Sizes must be possible, whatever the architecture.
fn check(config: &Config) -> Result<(), String> {
    if config.layers == 0 || config.width == 0 || config.vocabulary == 0 {
        return Err("has a size of zero: layers, width and vocabulary must be positive".to_owned());
    }
    let MixerConfig::Attention(a) = &config.mixer;
    if a.heads == 0 || a.groups == 0 || a.heads % a.groups != 0 {
        return Err(format!("has {} attention heads, which {} key-value heads cannot share", a.heads, a.groups));
    }
    if a.head == 0 || (a.rotary.is_some() && a.head % 2 != 0) {
        return Err(format!("has heads of {} elements; rotary positions need an even number", a.head));
    }
    if a.windows.len() != config.layers {
        return Err(format!("describes the attention of {} layers out of {}", a.windows.len(), config.layers));
    }
    Ok(())
}
