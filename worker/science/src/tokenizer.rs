//! From text to the tokens of a model and back, over the `tokenizers` crate.
//!
//! A text is encoded as one piece and alone: what the tokenizer's file says of truncation and padding is switched off.
//! Before it come the tokens that the tokenizer puts before a single text (usually the beginning-of-sequence token, or
//! nothing); what it would put after a text (an end token) is left away, since a prompt is to be gone on with.

use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error(
        "{} has no tokenizer.json; put the model's own there, or write one where transformers is installed: \
         AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)", .0.display()
    )]
    Missing(PathBuf),

    #[error("{}: {reason}; download the file again, or write it anew with transformers", .path.display())]
    Bad { path: PathBuf, reason: String },

    #[error("{text:?} cannot be written in this tokenizer's tokens: {reason}")]
    Encode { text: String, reason: String },

    #[error("these tokens are no text: {0}")]
    Decode(String),

    #[error("the tokenizer cannot be used: {0}")]
    Unusable(String),
}

/// A tokenizer with the tokens that its model expects around a text.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Put before every text.
    prefix: Vec<u32>,
    /// Each of these ends what a model generates.
    ends: BTreeSet<u32>,
    vocabulary: usize,
}

/// A text in tokens, those before it included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub tokens: Vec<u32>,
    /// Of each token, from which to which byte of the text it goes; (0, 0) for the tokens before the text. Some tokenizers
    /// count blanks at either end of a token to neither.
    pub spans: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// The tokenizer of a folder as downloaded from the HuggingFace hub. `tokenizer.json` says how text is cut and what
    /// comes before it; only where it has no post-processor, `add_bos_token` and `bos_token` of `tokenizer_config.json`
    /// do. Generation ends at the `eos_token` of `tokenizer_config.json` and at the `eos_token_id` of
    /// `generation_config.json` and `config.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] and [`TokenizerError::Bad`].
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(TokenizerError::Missing(folder.to_owned()));
        }
        let bad = |reason: String| TokenizerError::Bad { path: path.clone(), reason };
        let inner = tokenizers::Tokenizer::from_file(&path).map_err(|e| bad(e.to_string()))?;
        let config_path = folder.join("tokenizer_config.json");
        let config = json(&config_path)?;
        let named = |key: &str| special(&config, key, &inner, &config_path);
        let adds = config.get("add_bos_token").and_then(Value::as_bool) == Some(true);
        let bos = if adds && inner.get_post_processor().is_none() { named("bos_token")? } else { None };
        let mut ends: BTreeSet<u32> = named("eos_token")?.into_iter().collect();
        for name in ["generation_config.json", "config.json"] {
            ends.extend(ids(json(&folder.join(name))?.get("eos_token_id")));
        }
        Self::new(inner, bos, ends)
    }

    /// A tokenizer that was built elsewhere (from a GGUF file). `bos` comes before what its post-processor puts before a
    /// text; give none where that puts it there already. `ends` are the tokens that end what a model generates.
    ///
    /// # Errors
    /// [`TokenizerError::Unusable`] where not even a letter can be encoded.
    pub fn new(
        mut inner: tokenizers::Tokenizer,
        bos: Option<u32>,
        ends: BTreeSet<u32>,
    ) -> Result<Self, TokenizerError> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| TokenizerError::Unusable(e.to_string()))?;
        let vocabulary = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let mut prefix: Vec<u32> = bos.into_iter().collect();
        prefix.extend(put_before_text(&inner)?);
        Ok(Self { inner, prefix, ends, vocabulary })
    }

    /// One more than the largest token: a model's vocabulary may be larger (padding), never smaller.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The tokens before every text.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Does this token end what a model generates?
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// # Errors
    /// [`TokenizerError::Encode`] where the vocabulary has nothing for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let encoding = encoded(&self.inner, text, false)?;
        let mut spans = vec![(0, 0); self.prefix.len()];
        spans.extend_from_slice(encoding.get_offsets());
        Ok(Encoded { tokens: [&self.prefix, encoding.get_ids()].concat(), spans })
    }

    /// The text of tokens, without special ones. Half a character at the end is written `\u{fffd}`.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(tokens, true).map_err(|e| TokenizerError::Decode(e.to_string()))
    }

    /// A token as it stands in the vocabulary.
    pub fn piece(&self, token: u32) -> String {
        self.inner.id_to_token(token).unwrap_or_else(|| format!("token {token}"))
    }
}

fn encoded(inner: &tokenizers::Tokenizer, text: &str, special: bool) -> Result<tokenizers::Encoding, TokenizerError> {
    inner.encode(text, special).map_err(|e| {
        let shown: String = text.chars().take(80).collect();
        TokenizerError::Encode { text: shown, reason: e.to_string() }
    })
}

/// What the post-processor puts before a text, seen on a text of one letter or digit.
fn put_before_text(inner: &tokenizers::Tokenizer) -> Result<Vec<u32>, TokenizerError> {
    for probe in ["a", "0", " "] {
        if !encoded(inner, probe, false)?.is_empty() {
            let with = encoded(inner, probe, true)?;
            let before = with.get_special_tokens_mask().iter().take_while(|&&special| special == 1).count();
            return Ok(with.get_ids()[..before].to_vec());
        }
    }
    Err(TokenizerError::Unusable("it makes no token of a letter, a digit or a blank".into()))
}

/// A JSON file that may be absent: null then.
fn json(path: &Path) -> Result<Value, TokenizerError> {
    let bad = |reason: String| TokenizerError::Bad { path: path.to_owned(), reason };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(bad(e.to_string())),
    }
}

/// The token that a configuration names under `key`: text, or an object with the text as `content`.
fn special(
    config: &Value,
    key: &str,
    inner: &tokenizers::Tokenizer,
    path: &Path,
) -> Result<Option<u32>, TokenizerError> {
    let value = config.get(key);
    let Some(text) = value.and_then(|v| v.get("content").or(Some(v))).and_then(Value::as_str) else { return Ok(None) };
    let unknown = || TokenizerError::Bad {
        path: path.to_owned(),
        reason: format!("{key} `{text}` is not in the vocabulary of tokenizer.json"),
    };
    inner.token_to_id(text).map(Some).ok_or_else(unknown)
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
