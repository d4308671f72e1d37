//! Interventions on a language model, against doing them by hand: states prompt by prompt, means and differences of them, and
//! answers that are computed anew from the whole text for every token.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{D, DType, Device, Tensor};
use common::{Folder, Memory, language};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};
use taskvec_model::{
    job::TdPart,
    spec::{
        At, DataFile, Family, Instruction, InterventionSpec, Layers, NaturalSpec, PatchLayers, PatchMode, PatchPairs,
        PatchPositions, Site, Template,
    },
};
use taskvec_science::{
    analysis::natural::{Reader, intervene, measure},
    hook::{Capture, Change, Edit, Hook, HookPoint, Tokens},
    load::{Files, Room},
    model::language::{Batch, Logits},
    task::{Prompt, Prompts, Series, Split, TaskSet, Verdict},
    tokenizer::Tokenizer,
};

const SEED: u64 = 3;
const EACH: u32 = 8;
const TASKS: [&str; 3] = ["first", "second", "Null"];
const NULL: usize = 2;
/// Of the model's tokens, those from here on end an answer, so that many answers are one character.
const ENDS: u32 = 30;
const ALL: u32 = 61;

/// A token for each character, and none for those that end an answer.
fn reader() -> Reader {
    let letters = "01 ->\nabcdefghijklmnopqrstuvw";
    let ends = (ENDS..ALL).map(|id| (format!("<{id}>"), id));
    let vocab: BTreeMap<String, u32> = letters.chars().map(String::from).zip(0..).chain(ends).collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let tokenizer = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
    let model = Files::find(language::folder("llama").to_str().unwrap(), None).unwrap();
    Reader {
        model: model.load(DType::F32, &[Room::cpu()]).unwrap(),
        tokenizer: Tokenizer::new(tokenizer, None, (ENDS..ALL).collect::<BTreeSet<_>>()).unwrap(),
    }
}

/// An input of three letters for each number.
fn input(number: usize) -> String {
    (0..3).map(|i| char::from(b'a' + (number / 23_usize.pow(i) * 7 + number) as u8 % 23)).collect()
}

/// Rows of all tasks, whose outputs are given by task and input.
fn written(folder: &Path, output: impl Fn(usize, &str) -> String) -> NaturalSpec {
    let path: PathBuf = folder.join("rows.jsonl");
    let row = |(task, name): (usize, &&str), number: usize| {
        let input = input(number);
        serde_json::json!({"task": name, "input": input, "output": output(task, &input)}).to_string()
    };
    let rows = TASKS.iter().enumerate().flat_map(|task| (0..60).map(move |number| (task, number)));
    fs::write(&path, rows.map(|(task, number)| row(task, number) + "\n").collect::<String>()).unwrap();
    NaturalSpec {
        family: Family::Pairs { file: DataFile { path: path.to_str().unwrap().into(), digest: None } },
        shots: vec![0],
        tasks: TASKS.map(str::to_owned).to_vec(),
        template: Template::default(),
        instruction: Instruction::None,
    }
}

/// What is computed by hand.
struct ByHand<'a> {
    reader: &'a Reader,
    prompts: &'a Prompts<'a>,
    spec: &'a InterventionSpec,
}

impl ByHand<'_> {
    fn draw(&self, task: usize, replicate: u32) -> Vec<Prompt> {
        let series = Series { task, split: Split::Test, shots: 0, replicate };
        self.prompts.batch(series, 0..u64::from(EACH)).unwrap()
    }

    /// The mean of a task's states after a layer, before the answer.
    fn mean(&self, task: usize, replicate: u32, layer: usize) -> Vec<f64> {
        let mut sum = vec![0.0; self.reader.model.config().width];
        for prompt in self.draw(task, 2 * replicate - 1) {
            let mut capture = Capture::new([HookPoint::hidden(layer)], Tokens::at([prompt.tokens.len() - 1]));
            let batch = Batch::new([&prompt.tokens]).unwrap();
            self.reader.model.forward(&batch, None, Some(&mut capture), Logits::None).unwrap();
            let state = capture.take(HookPoint::hidden(layer)).unwrap().to_dtype(DType::F64).unwrap();
            let state = state.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += x / f64::from(EACH));
        }
        sum
    }

    fn change(&self, target: usize, replicate: u32, layer: usize) -> Change {
        let means: Vec<_> = (0..TASKS.len()).map(|task| self.mean(task, replicate, layer)).collect();
        let mean = |i: usize| means.iter().map(|m| m[i]).sum::<f64>() / TASKS.len() as f64;
        match self.spec.mode {
            PatchMode::Replace => Change::Replace(Tensor::new(means[target].as_slice(), &Device::Cpu).unwrap()),
            PatchMode::AddMeanDifference => {
                let away: Vec<f64> = (0..means[target].len()).map(|i| means[target][i] - mean(i)).collect();
                Change::Add(Tensor::new(away, &Device::Cpu).unwrap())
            }
        }
    }

    /// What a model writes after a prompt whose last state is changed after a layer.
    fn answer(&self, prompt: &Prompt, change: Option<(usize, &Change)>) -> Vec<u32> {
        let mut generated = Vec::new();
        while generated.len() < prompt.most_generated && generated.last().is_none_or(|&t| t < ENDS) {
            let tokens = [&prompt.tokens[..], &generated].concat();
            let site = prompt.tokens.len() - 1;
            let mut edit = change.map(|(layer, change)| {
                Edit::new(HookPoint::hidden(layer), Tokens::by_row([(0, vec![site])]), change.clone())
            });
            let hook = edit.as_mut().map(|e| e as &mut dyn Hook);
            let logits =
                self.reader.model.forward(&Batch::new([&tokens]).unwrap(), None, hook, Logits::Last).unwrap().unwrap();
            generated.push(logits.argmax(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap()[0]);
        }
        generated
    }

    /// The fraction of a source task's prompts that are answered rightly.
    fn accuracy(&self, source: usize, replicate: u32, change: Option<(usize, &Change)>) -> f64 {
        let prompts = self.draw(source, 2 * replicate);
        let right = |p: &&Prompt| self.prompts.judge(p, &self.answer(p, change)).unwrap() == Verdict::Right;
        prompts.iter().filter(right).count() as f64 / f64::from(EACH)
    }
}

fn spec(mode: PatchMode, layers: PatchLayers) -> InterventionSpec {
    InterventionSpec {
        at: At::Last,
        layers,
        site: Site::X,
        positions: PatchPositions::Last,
        mode,
        pairs: PatchPairs::Paper,
        shots: Vec::new(),
        samples_per_task: EACH,
        replicates: 2,
    }
}

/// Outputs that the model writes by itself, for every other prompt, or when it is moved towards Null after the second block.
fn outputs(reader: &Reader, folder: &Folder) -> BTreeMap<(usize, String), String> {
    let data = written(folder.path(), |_, _| "q".to_owned());
    let tasks = TaskSet::load(&data, SEED).unwrap();
    let prompts = Prompts::new(&tasks, &data, &reader.tokenizer, reader.model.config().context, SEED).unwrap();
    let spec = spec(PatchMode::Replace, PatchLayers::All);
    let by_hand = ByHand { reader, prompts: &prompts, spec: &spec };
    let mut found = BTreeMap::new();
    for replicate in 1..=2 {
        let change = by_hand.change(NULL, replicate, 2);
        for task in 0..TASKS.len() {
            for (i, prompt) in by_hand.draw(task, 2 * replicate).iter().enumerate() {
                let tokens = by_hand.answer(prompt, (i % 2 == 1).then_some((2, &change)));
                let text = reader.tokenizer.decode(&tokens[..tokens.iter().position(|&t| t >= ENDS).unwrap_or(0)]);
                let written = text.unwrap().trim().to_owned();
                let input = prompt.text.chars().take(3).collect();
                if !written.is_empty() && !written.contains('\n') {
                    found.insert((task, input), written);
                }
            }
        }
    }
    found
}

#[test]
fn interventions_are_those_that_are_done_by_hand() {
    let (folder, reader) = (Folder::new(), reader());
    let outputs = outputs(&reader, &folder);
    assert!(outputs.len() > 5, "the model writes too little to be right: {outputs:?}");
    let data = written(folder.path(), |task, input| {
        outputs.get(&(task, input.to_owned())).map_or("q", String::as_str).to_owned()
    });
    let tasks = TaskSet::load(&data, SEED).unwrap();
    let prompts = Prompts::new(&tasks, &data, &reader.tokenizer, reader.model.config().context, SEED).unwrap();
    let layers = reader.model.config().layers;
    let mut values = BTreeSet::new();
    for mode in [PatchMode::Replace, PatchMode::AddMeanDifference] {
        let spec = spec(mode, PatchLayers::All);
        let asked = intervene::Asked { seed: SEED, data: &data, shots: 0, spec: &spec };
        let rows = intervene::run(&reader, asked, &mut Memory::default()).unwrap().interventions;
        // Towards the right task and towards Null, of the two tasks that are not it.
        assert_eq!(rows.len(), layers * 2 * 2 * 2);
        let by_hand = ByHand { reader: &reader, prompts: &prompts, spec: &spec };
        let place = |name: &str| TASKS.iter().position(|t| *t == name).unwrap();
        for row in rows {
            let (source, target) = (place(&row.source_task), place(&row.target_task));
            assert!(target == source || target == NULL);
            let change = by_hand.change(target, row.replicate, row.layer as usize);
            let patched = by_hand.accuracy(source, row.replicate, Some((row.layer as usize, &change)));
            let baseline = by_hand.accuracy(source, row.replicate, None);
            assert_eq!((row.baseline, row.patched), (baseline, patched), "{row:?}");
            values.insert(((baseline * 100.0) as u32, (patched * 100.0) as u32));
        }
    }
    assert!(values.len() > 4 && values.iter().any(|(a, b)| a != b), "too alike to tell anything: {values:?}");
}

#[test]
fn the_best_layer_is_the_one_of_the_highest_decodability() {
    let (folder, reader) = (Folder::new(), reader());
    let data = written(folder.path(), |task, _| ["q", "r", "s"][task].to_owned());
    let best = spec(PatchMode::Replace, PatchLayers::Best);
    let asked = intervene::Asked { seed: SEED, data: &data, shots: 0, spec: &best };
    let rows = intervene::run(&reader, asked, &mut Memory::default()).unwrap().interventions;
    let td = TdPart { layers: Layers::All, sites: vec![Site::X], k: 10, samples_per_task: EACH, pairs: false };
    let asked = measure::Asked { seed: SEED, data: &data, shots: 0, icl: None, td: Some(&td), lens: None };
    let mut means: BTreeMap<u32, f64> = BTreeMap::new();
    for row in measure::run(&reader, asked, &mut Memory::default()).unwrap().td {
        *means.entry(row.layer).or_default() += row.value;
    }
    means.remove(&0);
    let most = means.values().copied().fold(f64::MIN, f64::max);
    let want = means.iter().find(|(_, mean)| **mean == most).unwrap().0;
    assert!(rows.iter().all(|row| row.layer == *want) && !rows.is_empty(), "{means:?}");
}
