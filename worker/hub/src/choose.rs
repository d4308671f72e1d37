//! Which files of a repository are those of its model.

use crate::{error::some_of, name::is_plain, remote::Listing};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Beside the weights: how text becomes tokens, and which of them end an answer.
const SMALL: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// Nobody cuts a model into more pieces.
const MOST_SHARDS: usize = 10_000;

/// No vocabulary is larger, and no other text; the weights are as large as they are.
const LARGEST_TOKENIZER: u64 = 256 << 20;
const LARGEST_TEXT: u64 = 32 << 20;

/// How the weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    Single,
    Indexed,
}

/// How large may this file be?
pub(crate) fn most_bytes(file: &str) -> u64 {
    match file {
        "tokenizer.json" => LARGEST_TOKENIZER,
        _ if file.ends_with(".json") => LARGEST_TEXT,
        _ => u64::MAX,
    }
}

/// What is fetched first: it says what else there is.
///
/// # Errors
/// Why the repository has no model that is read here, and what it has.
pub(crate) fn weights(listing: &Listing) -> Result<Weights, String> {
    if !listing.has(CONFIG) {
        return Err(format!("it has no {CONFIG}; {}", what_there_is(listing)));
    }
    match (listing.has(SINGLE), listing.has(INDEX)) {
        (true, _) => Ok(Weights::Single),
        (false, true) => Ok(Weights::Indexed),
        (false, false) => Err(format!("it has neither {SINGLE} nor {INDEX}; {}", what_there_is(listing))),
    }
}

/// All that is left to fetch, `config.json` last; `index` is the content of the index, where there is one.
///
/// # Errors
/// Where the index names what is no file of the repository.
pub(crate) fn files(listing: &Listing, index: Option<&[u8]>) -> Result<Vec<String>, String> {
    let mut files = match index {
        None => vec![SINGLE.to_owned()],
        Some(index) => shards(listing, index)?,
    };
    files.extend(SMALL.iter().filter(|name| listing.has(name)).map(|name| (*name).to_owned()));
    files.push(CONFIG.to_owned());
    Ok(files)
}

fn shards(listing: &Listing, index: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|e| format!("its {INDEX} is not an index: {e}"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.len() > MOST_SHARDS {
        return Err(format!("its {INDEX} lists {} files, more than {MOST_SHARDS}", shards.len()));
    }
    for name in &shards {
        let shown = name.escape_debug();
        if !is_plain(name) || !name.ends_with(".safetensors") {
            return Err(format!("its {INDEX} lists `{shown}`, which is not the plain name of a safetensors file"));
        }
        if !listing.has(name) {
            return Err(format!("its {INDEX} lists {shown}, which it does not have"));
        }
    }
    Ok(shards.into_iter().collect())
}

/// For a repository that cannot be read.
fn what_there_is(listing: &Listing) -> String {
    let ending = |ending: &str| -> Vec<String> {
        let names = listing.siblings.iter().map(|sibling| &sibling.rfilename);
        names.filter(|name| name.to_lowercase().ends_with(ending)).map(|name| name.escape_debug().to_string()).collect()
    };
    let (gguf, pickled) = (ending(".gguf"), ending(".bin"));
    if !gguf.is_empty() {
        return format!(
            "it has GGUF files, which are read by path: {}; download one (`hf download OWNER/NAME FILE --local-dir DIR`) and \
             name it as the model",
            some_of(&gguf)
        );
    }
    match pickled.is_empty() {
        true => format!("it has {}", some_of(&ending(""))),
        false => format!(
            "it has {}, which are not read here; convert them with transformers: \
             AutoModelForCausalLM.from_pretrained(…).save_pretrained(DIR)",
            some_of(&pickled)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Sibling;

    fn listing(files: &[&str]) -> Listing {
        let siblings = files.iter().map(|name| Sibling { rfilename: (*name).to_owned() }).collect();
        Listing { sha: "0".repeat(40), siblings }
    }

    #[test]
    fn only_what_is_read_is_fetched_and_the_configuration_last() {
        let all = ["README.md", CONFIG, SINGLE, "pytorch_model.bin", "tokenizer.json", "onnx/model.onnx"];
        assert_eq!(weights(&listing(&all)), Ok(Weights::Single));
        assert_eq!(files(&listing(&all), None).expect("files"), [SINGLE, "tokenizer.json", CONFIG]);
        let cut = [CONFIG, INDEX, "a.safetensors", "b.safetensors", "c.safetensors"];
        assert_eq!(weights(&listing(&cut)), Ok(Weights::Indexed));
        let index = br#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}"#;
        assert_eq!(files(&listing(&cut), Some(index)).expect("files"), ["a.safetensors", "b.safetensors", CONFIG]);
    }

    #[test]
    fn what_cannot_be_read_is_said_with_what_there_is() {
        let refused = |files: &[&str]| weights(&listing(files)).expect_err("is refused");
        let gguf = refused(&[CONFIG, "m.Q4_1.gguf", "m.F16.GGUF"]);
        assert!(gguf.contains("`m.Q4_1.gguf`, `m.F16.GGUF`") && gguf.contains("hf download"), "{gguf}");
        let pickled = refused(&[CONFIG, "pytorch_model.bin"]);
        assert!(pickled.contains("pytorch_model.bin") && pickled.contains("save_pretrained"), "{pickled}");
        assert!(refused(&["README.md"]).contains("no config.json; it has `README.md`"));
        assert!(refused(&[]).contains("it has none"));
    }

    #[test]
    fn an_index_names_plain_files_of_the_repository_only() {
        let here = listing(&[CONFIG, INDEX, "../../x.safetensors", "a/b.safetensors", "x.py"]);
        for (name, says) in [
            ("../../x.safetensors", "plain name"),
            ("/etc/passwd", "plain name"),
            ("a/b.safetensors", "plain name"),
            ("x.py", "plain name"),
            ("..", "plain name"),
            ("missing.safetensors", "does not have"),
        ] {
            let index = serde_json::json!({"weight_map": {"w": name}}).to_string();
            let error = files(&here, Some(index.as_bytes())).expect_err("is refused");
            assert!(error.contains(says), "{name}: {error}");
        }
        assert!(files(&here, Some(b"[]")).expect_err("is refused").contains("not an index"));
    }
}
