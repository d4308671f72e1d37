//! A real model: SmolLM2-135M-Instruct in Q4_1, as `make models` fetches it, against llama.cpp's tokenizer and
//! transformers' model on the same file (tests/fixtures/smollm2.py).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::DType;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use taskvec_science::{
    load::{Files, Room},
    model::language::{Batch, generate},
};

#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    decoded: Vec<String>,
    prompts: Vec<Vec<u32>>,
    continuations: Vec<Vec<u32>>,
}

/// The file, and what it must give; none where nobody has fetched it.
fn model() -> Option<(Files, Expected)> {
    let named = std::env::var_os("TASKVEC_SMOLLM2_GGUF").map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = named.unwrap_or(fetched);
    if !path.is_file() {
        common::skipped(format_args!("{} is not there; `make models` fetches it", path.display()));
        return None;
    }
    let expected = std::fs::read_to_string(common::fixture("smollm2.json")).unwrap();
    Some((Files::find(path.to_str().unwrap(), None).unwrap(), serde_json::from_str(&expected).unwrap()))
}

#[test]
fn what_the_file_is() {
    let Some((files, _)) = model() else { return };
    let identity = files.identity().unwrap();
    let sizes = (identity.layers, identity.width, identity.heads, identity.vocabulary, identity.context);
    assert_eq!((identity.arch.as_str(), sizes), ("llama", (30, 576, 9, 49_152, Some(8_192))));
    assert_eq!(identity.parameters, 134_515_008);
    assert!(files.config().unembedding.tied);
}

#[test]
fn text_becomes_the_tokens_that_llama_cpp_makes_of_it() {
    let Some((files, expected)) = model() else { return };
    let tokenizer = files.gguf().unwrap().tokenizer().unwrap();
    assert_eq!(tokenizer.ends.into_iter().collect::<Vec<_>>(), [2]);
    for ((text, ids), decoded) in expected.texts.iter().zip(&expected.ids).zip(&expected.decoded) {
        let ours = tokenizer.tokenizer.encode(text.as_str(), true).unwrap();
        assert_eq!(ours.get_ids(), ids, "{text:?} {:?}", ours.get_tokens());
        assert_eq!(&tokenizer.tokenizer.decode(ids, false).unwrap(), decoded);
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    let Some((files, expected)) = model() else { return };
    let model = files.load(DType::F32, &[Room::cpu()]).unwrap();
    let prompts = Batch::new(&expected.prompts).unwrap();
    let tokens = expected.continuations[0].len();
    let ours = generate(&model, &prompts, tokens, |_, _| false, None).unwrap();
    for (i, (ours, theirs)) in ours.iter().zip(&expected.continuations).enumerate() {
        assert_eq!(ours, theirs, "prompt {i}");
    }
}
