//! A GGUF file's metadata, by key and type. Errors are reasons, without the path.

use candle_core::quantized::gguf_file::Value;
use std::collections::HashMap;

/// Architecture names are put before keys that start with a dot: `.block_count` is `llama.block_count`.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    values: &'a HashMap<String, Value>,
    arch: &'a str,
}

impl<'a> Metadata<'a> {
    pub fn new(values: &'a HashMap<String, Value>) -> Result<Self, String> {
        let mut metadata = Self { values, arch: "" };
        metadata.arch = metadata.text("general.architecture")?;
        Ok(metadata)
    }

    pub fn arch(self) -> &'a str {
        self.arch
    }

    fn full(self, key: &str) -> String {
        if key.starts_with('.') { format!("{}{key}", self.arch) } else { key.to_owned() }
    }

    fn find(self, key: &str) -> Option<&'a Value> {
        self.values.get(&self.full(key))
    }

    pub fn has(self, key: &str) -> bool {
        self.find(key).is_some()
    }

    fn wanted<T>(self, key: &str, found: Option<T>) -> Result<T, String> {
        found.ok_or_else(|| format!("has no metadata entry `{}`", self.full(key)))
    }

    fn typed<T>(self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, String> {
        let read = |v| read(v).ok_or_else(|| format!("has `{}` as {}, not {what}", self.full(key), name(v)));
        self.find(key).map(read).transpose()
    }

    pub fn text_if(self, key: &str) -> Result<Option<&'a str>, String> {
        self.typed(key, "text", |v| v.to_string().ok().map(String::as_str))
    }

    pub fn text(self, key: &str) -> Result<&'a str, String> {
        self.wanted(key, self.text_if(key)?)
    }

    pub fn flag_if(self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "true or false", |v| v.to_bool().ok())
    }

    /// A whole number, not negative.
    pub fn count_if(self, key: &str) -> Result<Option<usize>, String> {
        self.typed(key, "a whole number", count)
    }

    pub fn count(self, key: &str) -> Result<usize, String> {
        self.wanted(key, self.count_if(key)?)
    }

    /// The same, where the file may give one number for each layer: they must all be the same.
    pub fn count_of_layers(self, key: &str) -> Result<Option<usize>, String> {
        let Some(Value::Array(each)) = self.find(key) else { return self.count_if(key) };
        let each: Option<Vec<usize>> = each.iter().map(count).collect();
        match each.as_deref() {
            Some([first, rest @ ..]) if rest.iter().all(|n| n == first) => Ok(Some(*first)),
            _ => Err(format!("has a `{}` that differs between layers; such models are not supported", self.full(key))),
        }
    }

    pub fn number_if(self, key: &str) -> Result<Option<f64>, String> {
        self.typed(key, "a number", |v| match v {
            // The number that was meant: 1e-5, not the f32 next to it.
            Value::F32(x) => x.to_string().parse().ok(),
            Value::F64(x) => Some(*x),
            _ => count(v).map(|n| n as f64),
        })
    }

    pub fn number(self, key: &str) -> Result<f64, String> {
        self.wanted(key, self.number_if(key)?)
    }

    fn list_if<T>(
        self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, String> {
        self.typed(key, what, |v| v.to_vec().ok()?.iter().map(&read).collect())
    }

    pub fn texts_if(self, key: &str) -> Result<Option<Vec<&'a str>>, String> {
        self.list_if(key, "a list of texts", |v| v.to_string().ok().map(String::as_str))
    }

    pub fn texts(self, key: &str) -> Result<Vec<&'a str>, String> {
        self.wanted(key, self.texts_if(key)?)
    }

    pub fn counts_if(self, key: &str) -> Result<Option<Vec<usize>>, String> {
        self.list_if(key, "a list of whole numbers", count)
    }

    pub fn numbers_if(self, key: &str) -> Result<Option<Vec<f32>>, String> {
        self.list_if(key, "a list of f32", |v| v.to_f32().ok())
    }
}

/// Writers disagree on the integer type of most keys.
fn count(value: &Value) -> Option<usize> {
    match value {
        Value::I8(n) => usize::try_from(*n).ok(),
        Value::I16(n) => usize::try_from(*n).ok(),
        Value::I32(n) => usize::try_from(*n).ok(),
        Value::I64(n) => usize::try_from(*n).ok(),
        Value::Bool(_) => None,
        _ => value.to_u64().ok().and_then(|n| usize::try_from(n).ok()),
    }
}

fn name(value: &Value) -> String {
    format!("{:?}", value.value_type()).to_lowercase()
}
