//! Tagged corpora are read as NLTK reads them (fixtures/corpora.py).
//!
//! The Penn Treebank sample and English Web Treebank may not be committed: their tests want the folder that TASKVEC_SHARED
//! names, or `shared` beside the repository, and say so where it is absent.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use serde::Deserialize;
use std::{collections::BTreeMap, fs, path::PathBuf};
use taskvec_model::spec::{Corpus, DataFile, Family, Instruction, NaturalSpec, Template};
use taskvec_science::{
    rng::name_step,
    task::{
        Counts, TaskSet,
        pos::{self, Sentence, Tag},
    },
};

#[derive(Deserialize)]
struct Expected {
    sentences: usize,
    with_all_tags: usize,
    different: usize,
    words: BTreeMap<String, usize>,
    hash: u64,
    first: BTreeMap<usize, Vec<Option<String>>>,
}

fn expected(name: &str) -> Expected {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/corpora.json");
    let mut all: BTreeMap<String, Expected> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    all.remove(name).unwrap()
}

/// A file of the shared folder, where there is one.
fn shared(name: &str) -> Option<DataFile> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("TASKVEC_SHARED").map_or(beside, PathBuf::from);
    let path = folder.join("data").join(name);
    if !path.is_file() {
        let path = path.display();
        common::skipped(format_args!("{path} is absent; set TASKVEC_SHARED to the folder with data/{name}"));
        return None;
    }
    Some(DataFile { path: path.to_str().unwrap().into(), digest: None })
}

fn spec(corpus: Corpus) -> NaturalSpec {
    let (shots, tasks, template) = (vec![4], Vec::new(), Template::default());
    NaturalSpec { family: Family::Pos { corpus }, shots, tasks, template, instruction: Instruction::None }
}

/// Compares every sentence (through a hash), the words of each tag, and what is kept.
fn agrees(name: &str, corpus: &Corpus) -> Counts {
    let (want, got) = (expected(name), pos::read(corpus).unwrap());
    assert_eq!(got.len(), want.sentences);
    let firsts = |s: &Sentence| Tag::ALL.map(|tag| s.first(tag).map(str::to_owned));
    for (&i, first) in &want.first {
        assert_eq!(firsts(&got[i])[..], first[..], "sentence {i}: {}", got[i].text());
    }
    for tag in Tag::ALL {
        let words = got.iter().flat_map(|s| &s.0).filter(|w| w.tag == Some(tag)).count();
        assert_eq!(words, want.words[tag.as_str()], "{}", tag.as_str());
    }
    let line = |s: &Sentence| format!("{}\t{}\n", s.text(), firsts(s).map(Option::unwrap_or_default).join("\t"));
    assert_eq!(name_step(&got.iter().map(line).collect::<String>()), want.hash, "a sentence differs");
    let counts = TaskSet::load(&spec(corpus.clone()), 0).unwrap().counts();
    assert_eq!((counts.read, counts.kept), (want.sentences, want.different));
    assert_eq!(counts.repeated, want.with_all_tags - want.different);
    counts
}

#[test]
fn the_treebank_sample() {
    let Some(file) = shared("treebank.zip") else { return };
    let counts = agrees("treebank", &Corpus::Treebank { file });
    assert_eq!(counts, Counts { read: 3914, kept: 783, repeated: 0, train: 626, test: 157 });
}

#[test]
fn the_english_web_treebank() {
    let Some(file) = shared("en_ewt-ud-dev.conllu") else { return };
    let counts = agrees("conllu", &Corpus::Conllu { file });
    assert_eq!(counts, Counts { read: 2001, kept: 281, repeated: 1, train: 225, test: 56 });
}

#[test]
fn brown_from_a_folder_and_from_a_single_file() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/brown");
    let file = |path: PathBuf| DataFile { path: path.to_str().unwrap().into(), digest: None };
    agrees("brown", &Corpus::Brown { file: file(path.clone()) });
    let one = pos::read(&Corpus::Brown { file: file(path.join("cr09")) }).unwrap();
    assert_eq!(one.len(), 3);
    assert_eq!(one[0].text(), "Report- Urges Them to Act Soon on Bad Roads");
}

/// Everything that the tasks need is in the corpus that comes with the program, and no task is the same position always.
#[test]
fn the_bundled_corpus_is_varied() {
    let sentences = pos::read(&Corpus::Bundled).unwrap();
    assert_eq!(sentences.len(), 900);
    for tag in Tag::ALL {
        let mut places = BTreeMap::<usize, usize>::new();
        for sentence in &sentences {
            let place = sentence.0.iter().position(|w| w.tag == Some(tag));
            *places.entry(place.expect("every sentence has all tags")).or_default() += 1;
        }
        let most = places.values().max().unwrap();
        assert!(places.len() >= 7 && *most <= 300, "{}: {places:?}", tag.as_str());
    }
    let set = TaskSet::load(&spec(Corpus::Bundled), 0).unwrap();
    assert_eq!(set.counts(), Counts { read: 900, kept: 900, repeated: 0, train: 720, test: 180 });
}
