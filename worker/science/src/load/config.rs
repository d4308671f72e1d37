//! `config.json` as transformers 4 and 5 write it.

mod fields;
mod gpt2;
mod llama;
mod mamba2;
mod olmo_original;
mod special;

use super::{LoadError, names::Layout};
use crate::model::language::{AttentionConfig, Config, Mamba2Config, MixerConfig, RotaryConfig, RotaryScaling};
use fields::Fields;
use std::path::Path;

/// Values of `model_type` that are known.
const KNOWN: [&str; 7] = ["llama", "gemma2", "olmo", "hf_olmo", "olmo2", "gpt2", "mamba2"];

/// The architecture that a `config.json` describes, and how its weights are named.
///
/// # Errors
/// Where it is no such file, the type of model is unknown, or it asks for something that is not built here.
pub(super) fn read(path: &Path) -> Result<(Config, Layout), LoadError> {
    let text = std::fs::read_to_string(path).map_err(LoadError::io(path))?;
    let json = serde_json::from_str(&special::tagged(&text));
    of(path, &json.map_err(|e| LoadError::config(path, format!("is not JSON: {e}")))?)
}

/// The same for a configuration that was found in the file `path`.
///
/// # Errors
/// As [`read`].
pub(super) fn of(path: &Path, json: &serde_json::Value) -> Result<(Config, Layout), LoadError> {
    let map = json.as_object().ok_or_else(|| LoadError::config(path, "is not a JSON object"))?;
    let fields = Fields::new(path, map);
    // The code of Mamba's authors writes no type.
    let kind = match fields.has("model_type") || !fields.has("ssm_cfg") {
        true => fields.required::<String>("model_type")?,
        false => "mamba2".to_owned(),
    };
    let read = match kind.as_str() {
        "llama" => llama::llama(&fields)?,
        "gemma2" => llama::gemma2(&fields)?,
        "olmo2" => llama::olmo2(&fields)?,
        "gpt2" => gpt2::read(&fields)?,
        "mamba2" if fields.has("ssm_cfg") => mamba2::read_original(&fields)?,
        "mamba2" => mamba2::read(&fields)?,
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
    match &config.mixer {
        MixerConfig::Attention(attention) => check_attention(attention, config.layers),
        MixerConfig::Mamba2(mamba2) => check_mamba2(mamba2),
    }
}

fn check_attention(a: &AttentionConfig, layers: usize) -> Result<(), String> {
    if a.heads == 0 || a.groups == 0 || !a.heads.is_multiple_of(a.groups) {
        return Err(format!("has {} attention heads, which {} key-value heads cannot share", a.heads, a.groups));
    }
    if a.head == 0 || (a.rotary.is_some() && !a.head.is_multiple_of(2)) {
        return Err(format!("has heads of {} elements; rotary positions need an even number", a.head));
    }
    if let Some(RotaryConfig { scaling: RotaryScaling::Factors(factors), .. }) = &a.rotary
        && (factors.len() != a.head / 2 || factors.contains(&0.0))
    {
        let found = factors.len();
        return Err(format!("has {found} factors for {} frequencies of a head, or one of them is zero", a.head / 2));
    }
    if a.windows.len() != layers {
        return Err(format!("describes the attention of {} layers out of {}", a.windows.len(), layers));
    }
    Ok(())
}

fn check_mamba2(m: &Mamba2Config) -> Result<(), String> {
    if [m.heads, m.head, m.state, m.kernel].contains(&0) {
        return Err("has a size of zero: heads, head_dim, state_size and conv_kernel must be positive".to_owned());
    }
    if m.groups == 0 || !m.heads.is_multiple_of(m.groups) {
        return Err(format!("has {} heads, which do not divide into {} groups", m.heads, m.groups));
    }
    Ok(())
}
