//! A real model: SmolLM2-135M-Instruct in Q4_1, as `make models` fetches it, against llama.cpp's tokenizer and
//! transformers' model on the same file (tests/fixtures/smollm2.py and smollm2_answers.py).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::DType;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};
use taskvec_model::spec::{Family, Instruction, NaturalSpec, Template};
use taskvec_science::{
    analysis::natural::{Reader, measure},
    load::{Files, Room},
    model::language::{Batch, generate},
    task::{Prompt, Prompts, Series, Split, TaskSet},
    tokenizer::Tokenizer,
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

const SEED: u64 = 3;
const SHOTS: u32 = 4;
const EACH: u32 = 10;
const TASKS: [&str; 3] = ["AND", "OR", "Null"];

fn data() -> NaturalSpec {
    NaturalSpec {
        family: Family::Bitwise { digits: 3 },
        shots: vec![SHOTS],
        tasks: TASKS.map(str::to_owned).to_vec(),
        template: Template::default(),
        instruction: Instruction::None,
    }
}

fn reader(files: &Files) -> Reader {
    let found = files.gguf().unwrap().tokenizer().unwrap();
    let tokenizer = Tokenizer::new(found.tokenizer, None, found.ends).unwrap();
    Reader { model: files.load(DType::F32, &[Room::cpu()]).unwrap(), tokenizer }
}

/// The prompts that accuracy is measured on, with the answers that are right.
fn asked(reader: &Reader) -> Vec<Value> {
    let (data, context) = (data(), reader.model.config().context);
    let tasks = TaskSet::load(&data, SEED).unwrap();
    let prompts = Prompts::new(&tasks, &data, &reader.tokenizer, context, SEED).unwrap();
    let of = |task| {
        let series = Series { task, split: Split::Test, shots: SHOTS, replicate: 0 };
        prompts.batch(series, 0..u64::from(EACH)).unwrap()
    };
    let written = |p: Prompt| json!({"task": TASKS[p.series.task], "tokens": p.tokens, "answer": p.answer});
    (0..TASKS.len()).flat_map(of).map(written).collect()
}

/// Writes the prompts for `fixtures/smollm2_answers.py`: `cargo test --test smollm2 -- --ignored`.
#[test]
#[ignore = "writes a fixture"]
fn write_the_prompts_that_are_answered() {
    let Some((files, _)) = model() else { return };
    let lines: Vec<String> = asked(&reader(&files)).iter().map(Value::to_string).collect();
    let text = format!("{{\"prompts\": [\n{}\n]}}\n", lines.join(",\n"));
    fs::write(common::fixture("smollm2_answers.json"), text).unwrap();
}

/// The accuracy of each task is the share of right ones among the answers that transformers generates.
#[test]
fn accuracy_is_that_of_the_answers_of_transformers() {
    let Some((files, _)) = model() else { return };
    let expected: Value = serde_json::from_slice(&fs::read(common::fixture("smollm2_answers.json")).unwrap()).unwrap();
    let (reader, data) = (reader(&files), data());
    assert_eq!(&json!(asked(&reader)), &expected["prompts"], "the prompts are others");
    let asked = measure::Asked { seed: SEED, data: &data, shots: SHOTS, icl: Some(EACH), td: None, lens: None };
    let metrics = measure::run(&reader, asked, &mut common::Memory::default()).unwrap();
    let ours: Value =
        metrics.icl.iter().map(|r| json!([r.latent_task, (r.value * f64::from(r.n)).round() as u32])).collect();
    assert_eq!(ours, expected["right"]);
}
