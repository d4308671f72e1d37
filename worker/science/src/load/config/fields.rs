//! Typed access to the keys of a `config.json`.

use crate::{
    load::LoadError,
    model::language::{RotaryConfig, RotaryScaling},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;
use taskvec_kernels::Activation;

/// A JSON object of a file; `null` is as good as absent, as in transformers.
pub(super) struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, map }
    }

    /// An object within the file.
    pub(super) fn inner<'b>(&self, map: &'b Map<String, Value>) -> Fields<'b>
    where
        'a: 'b,
    {
        Fields { path: self.path, map }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|v| !v.is_null())
    }

    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub(super) fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, LoadError> {
        match self.map.get(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(value) => match serde_json::from_value(value.clone()) {
                Ok(value) => Ok(Some(value)),
                Err(e) => Err(self.bad(format!("`{key}` is {value}: {e}"))),
            },
        }
    }

    pub(super) fn required<T: DeserializeOwned>(&self, key: &str) -> Result<T, LoadError> {
        self.optional(key)?.ok_or_else(|| self.bad(format!("lacks `{key}`")))
    }

    pub(super) fn or<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T, LoadError> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// A key that must have one value, since models with another are not built here.
    pub(super) fn only<T: DeserializeOwned + PartialEq + std::fmt::Debug>(
        &self,
        key: &str,
        wanted: T,
    ) -> Result<(), LoadError> {
        match self.optional::<T>(key)? {
            Some(found) if found != wanted => {
                Err(self.bad(format!("`{key}` is {found:?}; only models with {wanted:?} are built here")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn bad(&self, reason: impl Into<String>) -> LoadError {
        LoadError::config(self.path, reason)
    }

    /// An activation function by the name transformers gives it.
    pub(super) fn activation(&self, key: &str, default: &str) -> Result<Activation, LoadError> {
        match self.or(key, default.to_owned())?.as_str() {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
            other => {
                Err(self.bad(format!("`{key}` is `{other}`; built here are silu, gelu_pytorch_tanh and gelu_new")))
            }
        }
    }

    /// Rotary positions: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (transformers 4).
    pub(super) fn rotary(&self, context: usize) -> Result<RotaryConfig, LoadError> {
        self.only("rope_interleaved", false)?;
        let new: Option<Map<String, Value>> = self.optional("rope_parameters")?;
        let old: Option<Map<String, Value>> = self.optional("rope_scaling")?;
        let parameters = new.or(old).unwrap_or_default();
        let inner = self.inner(&parameters);
        inner.only("partial_rotary_factor", 1.0)?;
        // Transformers 5 keeps the base inside; where it is nowhere, transformers has 10 000 for all these models.
        let base = match inner.optional("rope_theta")? {
            Some(base) => base,
            None => self.or("rope_theta", 10_000.0)?,
        };
        let kind = match inner.optional("rope_type")? {
            Some(kind) => kind,
            None => inner.or("type", "default".to_owned())?,
        };
        let scaling = match kind.as_str() {
            "default" => RotaryScaling::None,
            // Not of transformers: how GGUF files say it.
            "factors" => RotaryScaling::Factors(inner.required("factors")?),
            "linear" => RotaryScaling::Linear { factor: inner.required("factor")? },
            "llama3" => RotaryScaling::Llama3 {
                factor: inner.required("factor")?,
                low: inner.required("low_freq_factor")?,
                high: inner.required("high_freq_factor")?,
                original_context: inner.or("original_max_position_embeddings", context as f64)?,
            },
            other => {
                return Err(self.bad(format!("rope type is `{other}`; built here are default, linear and llama3")));
            }
        };
        Ok(RotaryConfig { base, scaling })
    }
}
