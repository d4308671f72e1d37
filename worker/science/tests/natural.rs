//! What is measured on a language model, against doing it prompt by prompt, and against scikit-learn on states that
//! transformers dumps.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{D, DType};
use common::{Memory, fixture, language};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use taskvec_model::{
    job::{LensPart, TdPart},
    spec::{Family, Instruction, Layers, NaturalSpec, Site, Template},
};
use taskvec_science::{
    analysis::{
        decode::Decoder,
        natural::{Reader, measure},
    },
    hook::{Capture, HookPoint, Tokens},
    load::{Files, Room},
    model::language::{Batch, Logits},
    rng::{Purpose, Stream},
    task::{Prompt, Prompts, Series, Split, TaskSet},
    tokenizer::Tokenizer,
};

const SHOTS: u32 = 2;
const EACH: u32 = 6;

/// A token for each character.
fn characters() -> Tokenizer {
    let vocab: BTreeMap<String, usize> = "01 ->\n".chars().enumerate().map(|(i, c)| (c.to_string(), i)).collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::new(tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap(), None, BTreeSet::new()).unwrap()
}

fn reader() -> Reader {
    reader_of(&language::folder("llama"))
}

fn reader_of(folder: &Path) -> Reader {
    let model = Files::find(folder.to_str().unwrap(), None).unwrap();
    Reader { model: model.load(DType::F32, &[Room::cpu()]).unwrap(), tokenizer: characters() }
}

/// One with attention, and one with states, whose rows share no beginnings.
fn readers() -> [Reader; 2] {
    [reader(), reader_of(&fixture("mamba2/two_groups"))]
}

fn data() -> NaturalSpec {
    NaturalSpec {
        family: Family::Bitwise { digits: 3 },
        shots: vec![SHOTS],
        tasks: ["AND", "OR", "XOR"].map(str::to_owned).to_vec(),
        template: Template::default(),
        instruction: Instruction::None,
    }
}

fn prompts(reader: &Reader) -> Vec<Prompt> {
    let (data, context) = (data(), reader.model.config().context);
    let tasks = TaskSet::load(&data, 5).unwrap();
    let prompts = Prompts::new(&tasks, &data, &reader.tokenizer, context, 5).unwrap();
    let series = |task| Series { task, split: Split::Test, shots: SHOTS, replicate: 0 };
    (0..3).flat_map(|task| prompts.batch(series(task), 0..u64::from(EACH)).unwrap()).collect()
}

fn td() -> TdPart {
    TdPart { layers: Layers::All, sites: vec![Site::X, Site::Y], k: 3, samples_per_task: EACH, pairs: true }
}

#[test]
fn decodability_is_that_of_states_taken_prompt_by_prompt() {
    readers().iter().for_each(decodability_is_of_states);
}

fn decodability_is_of_states(reader: &Reader) {
    let (data, td) = (data(), td());
    let asked = measure::Asked { seed: 5, data: &data, shots: SHOTS, icl: None, td: Some(&td), lens: None };
    let metrics = measure::run(reader, asked, &mut Memory::default()).unwrap();
    let prompts = prompts(reader);
    let labels: Vec<u32> = prompts.iter().map(|p| p.series.task as u32).collect();
    let layers = reader.model.config().layers;
    assert_eq!(metrics.td.len(), (layers + 1) * 2 * 3);
    assert_eq!(metrics.td_pairs.len(), (layers + 1) * 2 * 3);
    let mut values = BTreeSet::new();
    for layer in 0..=layers {
        for site in [Site::X, Site::Y] {
            let mut points = Vec::new();
            for prompt in &prompts {
                let token = match site {
                    Site::X => prompt.query_site(),
                    _ => prompt.y_site().unwrap(),
                };
                let mut capture = Capture::new([HookPoint::hidden(layer)], Tokens::at([token]));
                let batch = Batch::new([&prompt.tokens]).unwrap();
                reader.model.forward(&batch, None, Some(&mut capture), Logits::None).unwrap();
                let state = capture.take(HookPoint::hidden(layer)).unwrap().to_dtype(DType::F64).unwrap();
                points.extend(state.flatten_all().unwrap().to_vec1::<f64>().unwrap());
            }
            let width = points.len() / prompts.len();
            let stream = Stream { seed: 5, purpose: Purpose::Td, step: 1 };
            let decoded = Decoder::new(&labels, 3, 3, stream).decode(&points, width);
            let found = metrics.td.iter().filter(|r| r.layer as usize == layer && r.site == site);
            for (row, want) in found.zip(&decoded) {
                assert_eq!((row.value, row.stderr), (want.value, want.stderr), "layer {layer}, site {site}");
                values.insert((row.value * 1e6) as u64);
            }
            pairs_are_two_tasks_alone(&metrics, layer, site, &points, &labels, width);
        }
    }
    assert!(values.len() > 3, "too few different values to tell anything: {values:?}");
}

/// Pairwise TD is TD where there are no other tasks.
fn pairs_are_two_tasks_alone(
    metrics: &taskvec_model::metric::Metrics,
    layer: usize,
    site: Site,
    points: &[f64],
    labels: &[u32],
    width: usize,
) {
    let names = ["AND", "OR", "XOR"];
    let rows = metrics.td_pairs.iter().filter(|r| r.layer as usize == layer && r.site == site);
    for (row, (a, b)) in rows.zip([(0, 1), (0, 2), (1, 2)]) {
        assert_eq!((row.latent_task_a.as_str(), row.latent_task_b.as_str()), (names[a], names[b]));
        let chosen: Vec<usize> = (0..labels.len()).filter(|&i| [a, b].contains(&(labels[i] as usize))).collect();
        let of: Vec<u32> = chosen.iter().map(|&i| u32::from(labels[i] as usize == b)).collect();
        let some: Vec<f64> = chosen.iter().flat_map(|&i| points[i * width..][..width].to_vec()).collect();
        let stream = Stream { seed: 5, purpose: Purpose::Td, step: 1 };
        let decoded = Decoder::new(&of, 2, 3, stream).decode(&some, width);
        assert!((row.value - (decoded[0].value + decoded[1].value) / 2.0).abs() < 1e-12);
    }
}

#[test]
fn the_lens_at_the_last_layer_is_the_model() {
    readers().iter().for_each(the_lens_is_the_model);
}

fn the_lens_is_the_model(reader: &Reader) {
    let (data, layers) = (data(), reader.model.config().layers);
    let lens = LensPart { layers: Layers::All, samples_per_task: EACH };
    let asked = measure::Asked { seed: 5, data: &data, shots: SHOTS, icl: None, td: None, lens: Some(&lens) };
    let metrics = measure::run(reader, asked, &mut Memory::default()).unwrap();
    assert_eq!(metrics.lens.len(), (layers + 1) * 3);
    let last: Vec<_> = metrics.lens.iter().filter(|r| r.layer as usize == layers).collect();
    for (task, row) in last.iter().enumerate() {
        let (mut log_prob, mut rank) = (0.0, 0.0);
        for prompt in prompts(reader).iter().filter(|p| p.series.task == task) {
            let batch = Batch::new([&prompt.tokens]).unwrap();
            let logits = reader.model.forward(&batch, None, None, Logits::Last).unwrap().unwrap();
            let logits = logits.squeeze(0).unwrap().to_dtype(DType::F64).unwrap();
            let log_sum = logits.exp().unwrap().sum(D::Minus1).unwrap().to_scalar::<f64>().unwrap().ln();
            let logits = logits.to_vec1::<f64>().unwrap();
            let own = logits[prompt.answer_tokens[0] as usize];
            log_prob += (own - log_sum) / f64::from(EACH);
            rank += (1 + logits.iter().filter(|l| **l > own).count()) as f64 / f64::from(EACH);
        }
        assert!((row.log_prob - log_prob).abs() < 1e-5, "{} and {log_prob}", row.log_prob);
        assert!((row.rank - rank).abs() < 1e-9, "{} and {rank}", row.rank);
        assert_eq!(row.n, EACH);
    }
}

#[test]
fn a_job_measures_all_at_once_as_it_would_each_alone() {
    readers().iter().for_each(all_is_as_each_alone);
}

fn all_is_as_each_alone(reader: &Reader) {
    let (data, td) = (data(), td());
    let lens = LensPart { layers: Layers::All, samples_per_task: EACH - 2 };
    let asked = |icl, td, lens| measure::Asked { seed: 5, data: &data, shots: SHOTS, icl, td, lens };
    let run = |asked| measure::run(reader, asked, &mut Memory::default()).unwrap();
    let all = run(asked(Some(EACH - 1), Some(&td), Some(&lens)));
    assert_eq!(all.td, run(asked(None, Some(&td), None)).td);
    assert_eq!(all.lens, run(asked(None, None, Some(&lens))).lens);
    assert_eq!(all.icl, run(asked(Some(EACH - 1), None, None)).icl);
    assert_eq!((all.icl.len(), all.icl[0].n, all.lens[0].n), (3, EACH - 1, EACH - 2));
}

/// What `fixtures/decoded.py` reads the states of: four tasks, twelve prompts each, of a seed at which no neighbour that
/// matters is so close to the next that rounding could decide.
const DECODED_SEED: u64 = 1;
const DECODED: [&str; 4] = ["AND", "OR", "XOR", "Null"];
const DECODED_EACH: u32 = 12;

fn decoded_data() -> NaturalSpec {
    NaturalSpec { family: Family::Bitwise { digits: 4 }, tasks: DECODED.map(str::to_owned).to_vec(), ..data() }
}

/// The prompts with the tokens of their sites, as JSON.
fn decoded_prompts(reader: &Reader, seed: u64) -> Value {
    let (data, context) = (decoded_data(), reader.model.config().context);
    let tasks = TaskSet::load(&data, seed).unwrap();
    let prompts = Prompts::new(&tasks, &data, &reader.tokenizer, context, seed).unwrap();
    let of = |task| {
        let series = Series { task, split: Split::Test, shots: SHOTS, replicate: 0 };
        prompts.batch(series, 0..u64::from(DECODED_EACH)).unwrap()
    };
    let written = |p: Prompt| {
        let sites = json!({"x": p.query_site(), "y": p.y_site().unwrap()});
        json!({"task": DECODED[p.series.task], "sites": sites, "tokens": p.tokens})
    };
    (0..DECODED.len()).flat_map(of).map(written).collect()
}

/// Writes the prompts for `fixtures/decoded.py`: `cargo test --test natural -- --ignored`.
#[test]
#[ignore = "writes a fixture"]
fn write_the_prompts_that_are_decoded() {
    let seed = std::env::var("SEED").map_or(DECODED_SEED, |seed| seed.parse().unwrap());
    let prompts = decoded_prompts(&reader(), seed);
    let lines: Vec<String> = prompts.as_array().unwrap().iter().map(Value::to_string).collect();
    fs::write(fixture("decoded/prompts.json"), format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
}

/// TD and pairwise TD at every layer and site are those that scikit-learn finds in the states that transformers dumps.
#[test]
fn decodability_is_scikit_learns_on_states_of_transformers() {
    let read = |name: &str| serde_json::from_slice::<Value>(&fs::read(fixture(name)).unwrap()).unwrap();
    let reader = reader();
    assert_eq!(decoded_prompts(&reader, DECODED_SEED), read("decoded/prompts.json"), "the prompts are others");
    let expected = read("decoded/expected.json");
    let k = expected["k"].as_u64().unwrap() as u32;
    let td = TdPart { k, samples_per_task: DECODED_EACH, ..td() };
    let data = decoded_data();
    let asked = measure::Asked { seed: DECODED_SEED, data: &data, shots: SHOTS, icl: None, td: Some(&td), lens: None };
    let metrics = measure::run(&reader, asked, &mut Memory::default()).unwrap();
    let ours: Value = (metrics.td.iter())
        .map(|r| json!([r.layer, r.site, r.latent_task, (r.value * f64::from(r.n)).round() as u32]))
        .collect();
    assert_eq!(ours, expected["right"]);
    let ours: Value = (metrics.td_pairs.iter())
        .map(|r| {
            let right = (r.value * f64::from(2 * DECODED_EACH)).round() as u32;
            json!([r.layer, r.site, r.latent_task_a, r.latent_task_b, right])
        })
        .collect();
    assert_eq!(ours, expected["right_of_pairs"]);
}
