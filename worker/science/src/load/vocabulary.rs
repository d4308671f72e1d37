//! Does a tokenizer belong to a model?

use super::LoadError;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::{fmt, path::Path};

/// Embeddings are often padded to a multiple of this.
const PADDING: usize = 128;

/// Can a tokenizer of so many tokens be that of a model with so many embeddings? It may have some that no token uses, but no more
/// than a sixteenth of them (or what padding explains); every token must have one.
pub(super) fn fits(tokens: usize, vocabulary: usize) -> bool {
    let unused = vocabulary.saturating_sub(tokens);
    tokens <= vocabulary && (unused < PADDING || unused <= vocabulary / 16)
}

/// # Errors
/// Where the tokenizer in `tokenizer.json` is another model's, or the file is none.
pub(super) fn check(path: &Path, vocabulary: usize) -> Result<(), LoadError> {
    let bytes = std::fs::read(path).map_err(LoadError::io(path))?;
    let contents: Contents = serde_json::from_slice(&bytes).map_err(|e| LoadError::BadFile {
        path: path.to_owned(),
        reason: format!("is not a tokenizer that is known here: {e}"),
    })?;
    let added = contents.added_tokens.iter().map(|token| token.id + 1).max().unwrap_or(0);
    let tokens = contents.model.vocab.0.max(added);
    match fits(tokens, vocabulary) {
        true => Ok(()),
        false => Err(LoadError::Vocabulary { path: path.to_owned(), tokens, vocabulary }),
    }
}

#[derive(Deserialize)]
struct Contents {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Tokens,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
}

/// One more than the largest id: `vocab` maps tokens to ids (BPE, WordPiece), or lists them in order (Unigram).
struct Tokens(usize);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tokens to ids, or a list of tokens")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                let mut tokens = 0;
                while let Some((_, id)) = map.next_entry::<IgnoredAny, usize>()? {
                    tokens = tokens.max(id + 1);
                }
                Ok(Tokens(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tokens, A::Error> {
                let mut tokens = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    tokens += 1;
                }
                Ok(Tokens(tokens))
            }
        }
        deserializer.deserialize_any(Count)
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn every_token_needs_an_embedding_and_few_embeddings_a_token() {
        // Llama-3.1, SmolLM2, OLMo and GPT-NeoX's tokenizer with padded embeddings.
        for (tokens, vocabulary) in [(128_256, 128_256), (49_152, 49_152), (50_280, 50_304), (50_277, 50_304)] {
            assert!(fits(tokens, vocabulary), "{tokens} of {vocabulary}");
        }
        // Another model's, larger or smaller, and a tiny one with and without padding.
        for (tokens, vocabulary) in [(128_256, 49_152), (49_152, 128_256), (61, 60)] {
            assert!(!fits(tokens, vocabulary), "{tokens} of {vocabulary}");
        }
        assert!(fits(61, 128) && !fits(61, 256));
    }
}
