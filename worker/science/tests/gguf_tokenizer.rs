//! Tokenizers of GGUF files against llama.cpp (tests/fixtures/gguf_vocabularies.py).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use serde_json::Value;
use std::path::Path;
use taskvec_science::load::gguf::Gguf;

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn tokens_are_those_of_llama_cpp() {
    let text = std::fs::read_to_string(common::fixture("gguf/vocabularies.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    let files = expected["ids"].as_object().unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["gpt-2", "llama", "llama-bpe", "no_prefix", "qwen2", "smollm"]);
    for (name, lists) in files {
        let gguf = Gguf::vocabulary(&common::fixture(&format!("gguf/vocabularies/{name}.gguf"))).unwrap();
        for (text, theirs) in texts.iter().zip(lists.as_array().unwrap()) {
            let ours = gguf.tokenizer.encode(text.as_str(), false).unwrap();
            assert_eq!(ours.get_ids(), ids(theirs), "{name}: {text:?} {:?}", ours.get_tokens());
            // SentencePiece puts a space after every special token, and has one character for a space.
            if !["<s>", "<unk>", "[WHOLE]", "▁"].iter().any(|special| text.contains(special)) {
                assert_eq!(&gguf.tokenizer.decode(ours.get_ids(), false).unwrap(), text, "{name}");
            }
        }
    }
}

#[test]
fn special_tokens_at_the_ends_are_those_the_file_asks_for() {
    let with = |name: &str| {
        let gguf = Gguf::vocabulary(&common::fixture(&format!("gguf/vocabularies/{name}.gguf"))).unwrap();
        let bare = gguf.tokenizer.encode("a", false).unwrap().get_ids().to_vec();
        let whole = gguf.tokenizer.encode("a", true).unwrap().get_ids().to_vec();
        let at = whole.windows(bare.len()).position(|w| w == bare).unwrap();
        let last = gguf.tokenizer.get_vocab_size(true) as u32 - 1;
        let name = |id: &u32| if *id == last { "last".to_owned() } else { id.to_string() };
        let ends: Vec<String> = gguf.ends.iter().map(name).collect();
        let names = |ids: &[u32]| ids.iter().map(name).collect::<Vec<_>>().join(" ");
        (names(&whole[..at]), names(&whole[at + bare.len()..]), ends.join(" "))
    };
    let is = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(with("gpt-2"), is("", "", "last"));
    assert_eq!(with("llama-bpe"), is("last", "", "last"));
    assert_eq!(with("llama"), is("1", "", "2"));
    assert_eq!(with("no_prefix"), is("", "2", "2"));
}

/// With llama.cpp's sources at hand, its own vocabularies and tests of them, which are too large to be kept here.
#[test]
fn whole_vocabularies_agree_where_llama_cpp_is_at_hand() {
    let Some(models) = std::env::var_os("TASKVEC_LLAMA_CPP_MODELS") else {
        common::skipped(format_args!(
            "TASKVEC_LLAMA_CPP_MODELS does not name the folder `models` of llama.cpp's sources"
        ));
        return;
    };
    for name in ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "mpt", "starcoder", "refact", "qwen2"] {
        let path = Path::new(&models).join(format!("ggml-vocab-{name}.gguf"));
        let read = |ending: &str| std::fs::read_to_string(path.with_extension(format!("gguf.{ending}"))).unwrap();
        let (texts, theirs) = (read("inp"), read("out"));
        let gguf = Gguf::vocabulary(&path).unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        assert!(texts.len() > 40);
        for (text, theirs) in texts.iter().zip(theirs.lines()) {
            let theirs: Vec<u32> = theirs.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let ours = gguf.tokenizer.encode(*text, false).unwrap();
            assert_eq!(ours.get_ids(), theirs, "{name}: {text:?} {:?}", ours.get_tokens());
        }
    }
}
