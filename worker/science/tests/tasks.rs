//! Tasks in words: what they answer, how they are split, and what is said of bad data.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::Folder;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
};
use taskvec_model::spec::{Corpus, DataFile, Family, Instruction, NaturalSpec, Template};
use taskvec_science::task::{Counts, Item, Task, TaskError, TaskSet, identify};

fn load(family: Family, tasks: &[&str], seed: u64) -> Result<TaskSet, TaskError> {
    let tasks = tasks.iter().map(|&t| t.into()).collect();
    let (shots, template) = (vec![4], Template::default());
    TaskSet::load(&NaturalSpec { family, shots, tasks, template, instruction: Instruction::None }, seed)
}

fn file(path: &Path) -> DataFile {
    DataFile { path: path.to_str().unwrap().into(), digest: None }
}

fn pairs(path: &Path) -> Result<TaskSet, TaskError> {
    load(Family::Pairs { file: file(path) }, &[], 0)
}

fn written(folder: &Folder, name: &str, text: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

fn names(set: &TaskSet) -> Vec<&str> {
    set.tasks().iter().map(|t| t.name.as_str()).collect()
}

fn items(task: &Task) -> impl Iterator<Item = &Item> {
    task.train.iter().chain(&task.test)
}

/// No input twice, none in both parts, and all tasks split alike.
fn no_leak(set: &TaskSet) {
    let inputs = |items: &[Item]| items.iter().map(|i| i.input.clone()).collect::<BTreeSet<_>>();
    for task in set.tasks() {
        let (train, test) = (inputs(&task.train), inputs(&task.test));
        assert_eq!((train.len(), test.len()), (task.train.len(), task.test.len()), "{}: an input twice", task.name);
        assert!(train.is_disjoint(&test), "{} leaks", task.name);
        assert_eq!(test, inputs(&set.tasks()[0].test), "{} is split in its own way", task.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against integer arithmetic, for any width.
    #[test]
    fn operators_are_those_of_the_processor(digits in 1..=64u32, seed in any::<u64>()) {
        let set = load(Family::Bitwise { digits }, &[], seed).unwrap();
        no_leak(&set);
        let mask = if digits == 64 { u64::MAX } else { (1 << digits) - 1 };
        for task in set.tasks().iter().filter(|t| t.name != "Null") {
            for Item { input, output } in items(task).take(300) {
                let (a, b) = input.split_once(' ').unwrap();
                prop_assert!([a, b, output].iter().all(|n| n.len() == digits as usize));
                let [a, b, got] = [a, b, output].map(|n| u64::from_str_radix(n, 2).unwrap());
                let want = match task.name.as_str() {
                    "AND" => a & b,
                    "NAND" => !(a & b),
                    "OR" => a | b,
                    "NOR" => !(a | b),
                    "XOR" => a ^ b,
                    "XNOR" => !(a ^ b),
                    other => panic!("{other}"),
                };
                prop_assert_eq!(got, want & mask, "{} of {}", task.name, input);
            }
        }
    }
}

#[test]
fn five_digits_give_every_pair_once_and_swapped_pairs_stay_together() {
    let set = load(Family::Bitwise { digits: 5 }, &[], 1).unwrap();
    assert_eq!(names(&set), ["AND", "NAND", "OR", "NOR", "XOR", "XNOR", "Null"]);
    let Counts { read: 1024, kept: 1024, repeated: 0, train, test } = set.counts() else {
        panic!("{:?}", set.counts())
    };
    assert!(test == 205 || test == 206, "{test}");
    assert_eq!(train + test, 1024);
    let and = &set.tasks()[0];
    let of_test: BTreeSet<&str> = and.test.iter().map(|i| i.input.as_str()).collect();
    for input in &of_test {
        let (a, b) = input.split_once(' ').unwrap();
        assert!(of_test.contains(format!("{b} {a}").as_str()));
    }
    let wide = load(Family::Bitwise { digits: 9 }, &[], 1).unwrap().counts();
    assert_eq!(wide.kept, 10_500);
    assert!((500..=502).contains(&wide.test), "{wide:?}");
}

/// The data and its split belong to no seed; Null does, and its digits are fair.
#[test]
fn only_null_depends_on_the_seed() {
    let family = Family::Bitwise { digits: 5 };
    let [a, again, b] = [3, 3, 4].map(|seed| load(family.clone(), &[], seed).unwrap());
    assert_eq!(a, again);
    for (x, y) in a.tasks().iter().zip(b.tasks()) {
        assert_eq!(x == y, x.name != "Null");
    }
    let null = a.tasks().last().unwrap();
    let ones: usize = items(null).map(|i| i.output.matches('1').count()).sum();
    assert!((2410..=2710).contains(&ones), "{ones} of 5 120 digits: more than four deviations from half");
    let right = |name: &str| {
        let task = a.tasks().iter().find(|t| t.name == name).unwrap();
        items(task).zip(items(null)).filter(|(x, y)| x.output == y.output).count()
    };
    // By chance 32 of 1 024; 6 deviations are 33.
    assert!(["AND", "OR", "XOR"].iter().all(|n| right(n) < 65));
}

#[test]
fn null_names_words_of_the_sentence_from_everywhere_in_it() {
    let set = load(Family::Pos { corpus: Corpus::Bundled }, &[], 5).unwrap();
    no_leak(&set);
    assert_eq!(names(&set), ["Noun", "Adjective", "Verb", "Adverb", "Preposition", "Pronoun", "Null"]);
    let mut places = BTreeMap::<usize, usize>::new();
    for Item { input, output } in items(&set.tasks()[6]) {
        let place = input.split(' ').position(|w| w == output).expect("a word of the sentence");
        assert!(output.contains(char::is_alphanumeric));
        *places.entry(place).or_default() += 1;
    }
    assert!((0..8).all(|i| (45..150).contains(&places[&i])), "{places:?}");
}

#[test]
fn tasks_are_selected_by_name_and_in_order() {
    let family = Family::Bitwise { digits: 5 };
    assert_eq!(names(&load(family.clone(), &["XOR", "AND"], 0).unwrap()), ["XOR", "AND"]);
    let error = load(family.clone(), &["AND", "ADN", "XNO"], 0).unwrap_err().to_string();
    assert!(error.contains("no task `ADN`, `XNO`; there are `AND`, `NAND`"), "{error}");
    let error = load(family, &["OR", "OR"], 0).unwrap_err().to_string();
    assert!(error.contains("`OR` stands more than once"), "{error}");
    let error = load(Family::Bitwise { digits: 65 }, &[], 0).unwrap_err().to_string();
    assert!(error.contains("65 is not between 1 and 64"), "{error}");
}

const ROWS: [(&str, &str, &str); 4] =
    [("plural", "cat", "cats"), ("plural", "a \"big\" ox, say", "oxen"), ("past", "go", "went"), ("past", "é\nè", "x")];

#[test]
fn the_same_rows_come_from_lines_csv_arrays_and_archives() {
    let folder = Folder::new();
    let object = |(task, input, output): (&str, &str, &str)| {
        serde_json::json!({"task": task, "input": input, "output": output, "source": 1}).to_string()
    };
    let lines = ROWS.map(object).join("\n");
    let field = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let csv = ROWS.map(|(t, i, o)| format!("{},{t},{}", field(o), field(i))).join("\r\n");
    let array = |task: &str| {
        let rows = ROWS.iter().filter(|r| r.0 == task);
        let rows: Vec<_> = rows.map(|r| serde_json::json!({"input": r.1, "output": r.2})).collect();
        serde_json::to_string_pretty(&rows).unwrap()
    };
    let want = pairs(&written(&folder, "rows.jsonl", format!("{lines}\n\n"))).unwrap();
    assert_eq!(names(&want), ["plural", "past"]);
    assert_eq!(want.counts(), Counts { read: 4, kept: 4, repeated: 0, train: 4, test: 0 });
    assert_eq!(want, pairs(&written(&folder, "rows.csv", format!("output,task,input\r\n{csv}"))).unwrap());

    written(&folder, "vectors/abstractive/plural.json", array("plural"));
    written(&folder, "vectors/extractive/past.json", array("past"));
    written(&folder, "vectors/README.md", "not a table");
    let vectors = pairs(&folder.path().join("vectors")).unwrap();
    assert_eq!(vectors, want);

    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in
        [("v/plural.json", array("plural")), ("v/z/past.json", array("past")), ("__MACOSX/v/._past.json", "?".into())]
    {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(text.as_bytes()).unwrap();
    }
    let bytes = archive.finish().unwrap().into_inner();
    assert_eq!(pairs(&written(&folder, "vectors.zip", bytes)).unwrap(), want);
}

#[test]
fn repeated_inputs_count_once_and_blanks_at_the_ends_not() {
    let folder = Folder::new();
    let rows: String = (0..10).map(|i| format!("up, {i} ,{i}a\n")).collect();
    let set =
        pairs(&written(&folder, "r.csv", format!("\u{feff}task,input,output\n{rows}up,3,other\nlow,3,b\n"))).unwrap();
    assert_eq!(set.counts(), Counts { read: 12, kept: 11, repeated: 1, train: 9, test: 2 });
    let three: Vec<&Item> = items(&set.tasks()[0]).filter(|i| i.input == "3").collect();
    assert_eq!(three, [&Item { input: "3".into(), output: "3a".into() }]);
}

/// Every fault of a file at once, each with its line.
#[test]
fn faults_are_listed_with_their_lines() {
    let folder = Folder::new();
    let long = "x".repeat(70_000);
    let cases: [(&str, String, &[&str]); 8] = [
        (
            "a.jsonl",
            format!("{{\"task\":\"t\",\"input\":\"i\"}}\n{{oops\n[1]\n{{\"task\":\"t\",\"input\":3,\"output\":\"{long}\"}}\n"),
            &["a.jsonl:1: `output` is missing", "a.jsonl:2: no JSON", "a.jsonl:3: a row should be", "a.jsonl:4: `input` should be text in quotes, not a number"],
        ),
        ("b.jsonl", format!("{{\"task\":\"t\",\"input\":\"i\",\"output\":\"{long}\"}}"), &["b.jsonl:1: `output` has 70000 bytes; at most 65536"]),
        ("c.csv", "task,in,output\nt,i,o\n".into(), &["c.csv:1: the first line should name the columns task, input and output"]),
        (
            "d.csv",
            "task,input,output\nt,\"two\nlines\",o\nt,i\nt,\"i\"x,o\nt,,o\nt,\"i,o\n".into(),
            &["d.csv:4: 2 fields instead of 3", "d.csv:5: `x` after a closing quote", "d.csv:6: `input` is missing or empty", "d.csv:7: a quote is opened"],
        ),
        ("e.json", "[\n {\"input\": \"a\", \"output\": \"b\"},\n\n {\"input\": \"a\"},\n {\"input\": \"b\", \"output\": [1]}\n]".into(), &["e.json:4: `output` is missing", "e.json:5: `output` should be text in quotes, not a list"]),
        ("f.json", "[\n {\"input\": \"a\", \"output\": \"b\"}\n {\"input\": \"a\"}]".into(), &["f.json:3: `,` or `]` should follow a row"]),
        ("g.json", "[\n {\"input\": \"a\",\n \"output\": }\n]".into(), &["g.json:3: no JSON: expected value"]),
        ("h.json", "{\"input\": \"a\", \"output\": \"b\"}".into(), &["h.json:1: no array"]),
    ];
    for (name, text, wanted) in cases {
        let error = pairs(&written(&folder, name, text)).unwrap_err();
        let TaskError::Faulty(faults) = &error else { panic!("{name}: {error}") };
        let shown = error.to_string();
        assert_eq!(faults.0.len(), wanted.len(), "{shown}");
        wanted.iter().for_each(|w| assert!(shown.contains(w), "{w}: {shown}"));
    }
}

#[test]
fn corpora_with_faults_are_refused_with_all_of_them() {
    let folder = Folder::new();
    let word = |id: &str, tag: &str| format!("{id}\tword\t_\t{tag}\t_\t_\t_\t_\t_\t_\n");
    let conllu =
        format!("# c\n{}{}2\tword\n\n{}{}", word("1", "NOUN"), word("1-2", "_"), word("2", "VERB"), word("1", "NN"));
    let tree = "( (S (NP (NN dog) )\n (VP barks loudly) ))\n)\n( (S (NN dog)\n";
    let faults = |corpus: fn(DataFile) -> Corpus, name: &str, text: &str| {
        load(Family::Pos { corpus: corpus(file(&written(&folder, name, text))) }, &[], 0).unwrap_err().to_string()
    };
    let shown = faults(|file| Corpus::Conllu { file }, "a.conllu", &conllu);
    for want in [
        "a.conllu:4: 2 columns instead of 10",
        "a.conllu:6: `2` where word 1 should be",
        "a.conllu:7: `NN` is no universal tag",
    ] {
        assert!(shown.contains(want), "{shown}");
    }
    let shown = faults(|file| Corpus::Treebank { file }, "a.mrg", tree);
    for want in [
        "a.mrg:2: `(VP barks loudly)` is not",
        "a.mrg:3: this bracket closes nothing",
        "a.mrg:4: the tree that begins here",
    ] {
        assert!(shown.contains(want), "{shown}");
    }
    let shown = faults(|file| Corpus::Brown { file }, "a.brown", "The/at dog\n\nbarks/ loudly/rb\n");
    assert!(shown.contains("a.brown:1: `dog` is not `word/TAG`") && shown.contains("a.brown:3: `barks/`"), "{shown}");
    let shown = faults(|file| Corpus::Brown { file }, "b.brown", "The/DT dog/NN barks/VBZ at/IN me/PRP\n");
    assert!(shown.contains("none of 1 sentences has all six tags") && shown.contains("Pronoun 0"), "{shown}");
}

#[test]
fn files_that_are_absent_broken_or_changed_are_named() {
    let folder = Folder::new();
    let error = |path: &Path| pairs(path).unwrap_err().to_string();
    assert!(error(&folder.path().join("gone.csv")).contains("gone.csv cannot be read"));
    assert!(error(&written(&folder, "rows.txt", "x")).contains("must end in .jsonl, .csv or .json"));
    assert!(error(&written(&folder, "rows.csv", b"task,input,output\nt,\xff,o")).contains("is not UTF-8 (line 2)"));
    assert!(error(&written(&folder, "cut.zip", b"PK\x03\x04 and no more")).contains("cannot be unpacked"));
    assert!(error(&written(&folder, "empty.jsonl", "\n")).contains("holds no row"));
    fs::create_dir(folder.path().join("none")).unwrap();
    assert!(error(&folder.path().join("none")).contains("holds no file ending in .jsonl"));

    let path = written(&folder, "ok/t.json", "[{\"input\": \"a\", \"output\": \"b\"}]");
    for given in [path.clone(), folder.path().join("ok")] {
        let known = identify(&Family::Pairs { file: file(&given) }).unwrap();
        load(known.clone(), &[], 0).unwrap();
        fs::write(&path, "[{\"input\": \"a\", \"output\": \"c\"}]").unwrap();
        let error = load(known, &[], 0).unwrap_err();
        assert!(matches!(error, TaskError::Changed { .. }), "{error}");
        fs::write(&path, "[{\"input\": \"a\", \"output\": \"b\"}]").unwrap();
    }
}
