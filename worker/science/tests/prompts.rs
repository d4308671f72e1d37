//! Prompts in the tokens of real vocabularies, and tokenizers as transformers reads them (fixtures/tokenizer.py).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::Folder;
use proptest::prelude::*;
use serde::Deserialize;
use std::{collections::BTreeMap, collections::BTreeSet, fs, path::PathBuf};
use taskvec_model::spec::{Corpus, DataFile, Family, Instruction, NaturalSpec, Template};
use taskvec_science::{
    task::{Prompt, PromptError, Prompts, Series, Split, TaskSet, Verdict},
    tokenizer::{Tokenizer, TokenizerError},
};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(name)
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_folder(&folder(name)).unwrap()
}

/// Letters, digits and a few signs, with merges: `->`, `->0` (but not `->1`), `00` and ` 1`.
fn merging() -> Tokenizer {
    let merges = [["-", ">"], ["->", "0"], ["0", "0"], [" ", "1"]];
    let single = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain("->\n :,.".chars()).map(String::from);
    let all = single.chain(merges.iter().map(|pair| pair.concat()));
    let vocab: BTreeMap<String, usize> = all.enumerate().map(|(i, token)| (token, i)).collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    let inner = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
    Tokenizer::new(inner, None, BTreeSet::new()).unwrap()
}

fn spec(family: Family) -> NaturalSpec {
    let (shots, tasks, template) = (vec![0, 1, 4], Vec::new(), Template::default());
    NaturalSpec { family, shots, tasks, template, instruction: Instruction::None }
}

fn bitwise() -> NaturalSpec {
    spec(Family::Bitwise { digits: 5 })
}

fn pos() -> NaturalSpec {
    spec(Family::Pos { corpus: Corpus::Bundled })
}

fn template(arrow: &str, gap: &str) -> Template {
    Template { arrow: arrow.into(), gap: gap.into(), ..Template::default() }
}

fn series(task: usize, shots: u32) -> Series {
    Series { task, split: Split::Test, shots, replicate: 0 }
}

/// The prompts of every task at four shots.
fn prompts(spec: &NaturalSpec, tokenizer: &Tokenizer, n: u64) -> Result<Vec<Prompt>, PromptError> {
    let set = TaskSet::load(spec, 1).unwrap();
    let prompts = Prompts::new(&set, spec, tokenizer, None, 1)?;
    let all: Result<Vec<_>, _> = (0..set.tasks().len()).map(|t| prompts.batch(series(t, 4), 0..n)).collect();
    Ok(all?.concat())
}

#[test]
fn folders_are_read_as_transformers_reads_them() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
        decoded: String,
    }
    #[derive(Deserialize)]
    struct Expected {
        size: usize,
        bos: u32,
        eos: u32,
        cases: Vec<Case>,
    }
    let all: BTreeMap<String, Expected> = serde_json::from_slice(&fs::read(folder("expected.json")).unwrap()).unwrap();
    assert_eq!(all.len(), 2);
    for (name, want) in all {
        let tokenizer = tokenizer(&name);
        assert_eq!((tokenizer.vocabulary(), tokenizer.prefix()), (want.size, &[want.bos][..]), "{name}");
        assert!(tokenizer.is_end(want.eos) && !tokenizer.is_end(want.bos));
        assert_eq!(tokenizer.is_end(2), name == "llama3", "the second end token stands in generation_config.json");
        for Case { text, ids, decoded } in want.cases {
            let encoded = tokenizer.encode(&text).unwrap();
            assert_eq!(encoded.tokens, ids, "{name}: {text:?}");
            assert_eq!(encoded.spans.len(), ids.len());
            assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn folders_without_a_usable_tokenizer_say_what_to_do() {
    let empty = Folder::new();
    let error = Tokenizer::from_folder(empty.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::Missing(_)));
    assert!(error.to_string().contains("save_pretrained"), "{error}");
    let good = fs::read(folder("llama3").join("tokenizer.json")).unwrap();
    empty.put("tokenizer.json", &good[..good.len() / 2]);
    let error = Tokenizer::from_folder(empty.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: ") && error.contains("download the file again"), "{error}");
    empty.put("tokenizer.json", &good);
    empty.put("tokenizer_config.json", b"{\"eos_token\": \"</s>\"}");
    let error = Tokenizer::from_folder(empty.path()).unwrap_err().to_string();
    assert!(error.contains("eos_token `</s>` is not in the vocabulary"), "{error}");
    // Nothing but tokenizer.json: no end token, and the post-processor's beginning.
    fs::remove_file(empty.path().join("tokenizer_config.json")).unwrap();
    let bare = Tokenizer::from_folder(empty.path()).unwrap();
    assert_eq!((bare.prefix(), bare.is_end(1)), (&[0][..], false));
}

#[test]
fn a_bos_token_may_be_given_or_come_from_the_configuration() {
    let inner = || tokenizers::Tokenizer::from_file(folder("llama3").join("tokenizer.json")).unwrap();
    let mut plain = inner();
    plain.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    let given = Tokenizer::new(plain.clone(), Some(2), BTreeSet::from([1])).unwrap();
    assert_eq!(given.encode("a").unwrap().tokens[0], 2);
    assert!(given.is_end(1));
    let written = Folder::new();
    plain.save(written.path().join("tokenizer.json"), false).unwrap();
    let prefix = |config: &str| {
        written.put("tokenizer_config.json", config.as_bytes());
        Tokenizer::from_folder(written.path()).unwrap().prefix().to_vec()
    };
    assert_eq!(prefix("{\"add_bos_token\": true, \"bos_token\": \"<|begin_of_text|>\"}"), [0]);
    assert_eq!(prefix("{\"add_bos_token\": false, \"bos_token\": \"<|begin_of_text|>\"}"), [0u32; 0]);
    assert_eq!(prefix("{\"bos_token\": \"<|begin_of_text|>\"}"), [0u32; 0]);
}

/// The text of the tokens up to each site is the prompt's text up to the answer that follows it.
fn sites_are_where_they_should_be(prompt: &Prompt, tokenizer: &Tokenizer, template: &Template, gap_before: bool) {
    let shots = prompt.series.shots as usize;
    assert_eq!((prompt.x_sites.len(), prompt.y_sites.len()), (shots + 1, shots));
    assert_eq!((prompt.query_site(), prompt.y_site()), (prompt.tokens.len() - 1, prompt.y_sites.last().copied()));
    let upto = |site: usize| tokenizer.decode(&prompt.tokens[..=site]).unwrap();
    let before = format!("{}{}", template.arrow, if gap_before { &template.gap } else { "" });
    for &site in &prompt.x_sites {
        assert!(upto(site).ends_with(&before), "{:?} does not end in {before:?}", upto(site));
        assert!(prompt.text.starts_with(&upto(site)));
    }
    for (i, line) in prompt.text.lines().take(shots).enumerate() {
        let read = upto(prompt.y_sites[i]);
        assert_eq!(read.lines().last(), Some(line), "site y {i}");
    }
}

#[test]
fn the_gap_belongs_to_the_prompt_before_digits_and_to_the_answer_before_words() {
    for name in ["llama3", "gemma"] {
        let tokenizer = tokenizer(name);
        for prompt in prompts(&bitwise(), &tokenizer, 30).unwrap() {
            assert!(prompt.text.ends_with(" -> "), "{:?}", prompt.text);
            sites_are_where_they_should_be(&prompt, &tokenizer, &Template::default(), true);
            assert_eq!(tokenizer.decode(&prompt.answer_tokens).unwrap(), prompt.answer);
        }
        for prompt in prompts(&pos(), &tokenizer, 30).unwrap() {
            assert!(prompt.text.ends_with(" ->"), "{:?}", prompt.text);
            sites_are_where_they_should_be(&prompt, &tokenizer, &Template::default(), false);
            assert_eq!(tokenizer.decode(&prompt.answer_tokens).unwrap(), format!(" {}", prompt.answer));
        }
    }
}

#[test]
fn what_is_fed_is_what_the_tokenizer_makes_of_the_text() {
    let tokenizer = tokenizer("llama3");
    for prompt in prompts(&pos(), &tokenizer, 20).unwrap() {
        assert_eq!(prompt.tokens, tokenizer.encode(&prompt.text).unwrap().tokens);
        assert_eq!(prompt.tokens.iter().filter(|&&t| t == 0).count(), 1, "one <|begin_of_text|>");
        let whole = tokenizer.encode(&format!("{} {}", prompt.text, prompt.answer)).unwrap().tokens;
        assert_eq!(whole, [&prompt.tokens[..], &prompt.answer_tokens].concat());
    }
}

/// A tokenizer that merges the arrow with the answer's first digit leaves no token just before the answer.
#[test]
fn an_answer_that_merges_with_the_prompt_is_refused_with_the_token() {
    let tokenizer = merging();
    let merged = NaturalSpec { template: template("->", ""), ..bitwise() };
    let error = prompts(&merged, &tokenizer, 30).unwrap_err();
    let PromptError::Merged(what) = &error else { panic!("{error}") };
    assert_eq!((&what.alone[..], &what.followed[..]), (&["->".to_owned()][..], &["->0".to_owned()][..]));
    assert!(what.answer.starts_with('0') && what.before.ends_with("->"));
    let shown = error.to_string();
    assert!(shown.contains("it reads [\"->0\"]") && shown.contains("begin template.gap with a space"), "{shown}");

    // With a gap the arrow stands alone. Since ` 1` is a token and ` 0` is not, the gap is not always one of its own.
    let parted = NaturalSpec { template: template("->", " "), ..bitwise() };
    for prompt in prompts(&parted, &tokenizer, 30).unwrap() {
        assert!(prompt.text.ends_with("->"));
        sites_are_where_they_should_be(&prompt, &tokenizer, &parted.template, false);
        assert!(prompt.answer_tokens[0] == tokenizer.encode(" ").unwrap().tokens[0] || prompt.answer.starts_with('1'));
    }
    // Another arrow helps as well; a blank at its end that merges with some outputs does not.
    let colon = NaturalSpec { template: template(":", ""), ..bitwise() };
    assert_eq!(prompts(&colon, &tokenizer, 5).unwrap().len(), 35);
    let blank = NaturalSpec { template: template(": ", ""), ..bitwise() };
    let error = prompts(&blank, &tokenizer, 30).unwrap_err().to_string();
    assert!(error.contains("it reads [\" 1\"]"), "{error}");
}

/// The query may be fine while a demonstration merges: no site of it could be read.
#[test]
fn demonstrations_that_merge_are_found_too() {
    let given = Folder::new();
    let rows: String = (0..40).map(|i| format!("t,{},{}\n", "abcd".repeat(i + 1), i % 8 / 7)).collect();
    let path = given.put("rows.csv", format!("task,input,output\n{rows}").as_bytes());
    let file = DataFile { path: path.to_str().unwrap().into(), digest: None };
    let spec = NaturalSpec { template: template("->", ""), ..spec(Family::Pairs { file }) };
    let tokenizer = merging();
    let set = TaskSet::load(&spec, 1).unwrap();
    let prompts = Prompts::new(&set, &spec, &tokenizer, None, 1).unwrap();
    let one = set.tasks()[0].items(Split::Train).iter().filter(|i| i.output == "1").count();
    assert!(one > 0);
    let of_train = |shots| Series { task: 0, split: Split::Train, shots, replicate: 0 };
    let asked_for_one = (0..32).find(|&i| prompts.batch(of_train(0), i..i + 1).is_ok()).expect("`->1` is no token");
    let error = prompts.batch(of_train(4), asked_for_one..asked_for_one + 1).unwrap_err();
    let PromptError::Merged(what) = error else { panic!("{error}") };
    assert_eq!((what.answer.as_str(), &what.followed[..]), ("0", &["->0".to_owned()][..]));
}

#[test]
fn sites_y_are_the_last_tokens_of_outputs_even_where_the_separator_is_merged_with_them() {
    let given = Folder::new();
    let rows: String = (0..40).map(|i| format!("t,{i}x,{}!\n", "ab".repeat(i + 1))).collect();
    let path = given.put("rows.csv", format!("task,input,output\n{rows}").as_bytes());
    let file = DataFile { path: path.to_str().unwrap().into(), digest: None };
    let tokenizer = tokenizer("llama3");
    for prompt in prompts(&spec(Family::Pairs { file }), &tokenizer, 8).unwrap() {
        for &site in &prompt.y_sites {
            let read = tokenizer.decode(&prompt.tokens[..=site]).unwrap();
            assert!(read.trim_end().ends_with("ab!"), "{read:?}");
            let earlier = tokenizer.decode(&prompt.tokens[..site]).unwrap();
            assert!(!earlier.ends_with('!'), "{earlier:?}");
        }
    }
}

/// A prompt does not depend on who asks for it with which others.
#[test]
fn prompts_are_functions_of_their_address() {
    let (spec, tokenizer) = (bitwise(), tokenizer("llama3"));
    let set = TaskSet::load(&spec, 1).unwrap();
    let prompts = Prompts::new(&set, &spec, &tokenizer, None, 1).unwrap();
    let series = series(2, 4);
    let all = prompts.batch(series, 0..450).unwrap();
    for index in [0, 7, 204, 205, 206, 449] {
        assert_eq!(prompts.batch(series, index..index + 1).unwrap()[0], all[index as usize]);
    }
    // The same whichever tasks are selected beside it.
    let alone = NaturalSpec { tasks: vec!["OR".into()], ..spec.clone() };
    let set_alone = TaskSet::load(&alone, 1).unwrap();
    let of_or = Prompts::new(&set_alone, &alone, &tokenizer, None, 1).unwrap();
    let one = of_or.batch(Series { task: 0, ..series }, 0..3).unwrap();
    assert!(one.iter().zip(&all).all(|(a, b)| a.tokens == b.tokens));
    // Another seed, replicate or part gives others.
    let texts = |prompts: &Prompts<'_>, series| -> Vec<String> {
        prompts.batch(series, 0..20).unwrap().into_iter().map(|p| p.text).collect()
    };
    let other = Prompts::new(&set, &spec, &tokenizer, None, 2).unwrap();
    let different = [
        texts(&prompts, series),
        texts(&other, series),
        texts(&prompts, Series { replicate: 1, ..series }),
        texts(&prompts, Series { split: Split::Train, ..series }),
        texts(&prompts, Series { task: 3, ..series }),
    ];
    let distinct: BTreeSet<&String> = different.iter().flatten().collect();
    assert_eq!(distinct.len(), 100);
}

/// A change here changes every result ever computed on tasks in words.
#[test]
fn the_prompts_never_change() {
    let (spec, tokenizer) = (bitwise(), tokenizer("llama3"));
    let set = TaskSet::load(&spec, 1).unwrap();
    let prompts = Prompts::new(&set, &spec, &tokenizer, None, 1).unwrap();
    let [and, null] = [0, 6].map(|task| prompts.batch(series(task, 2), 0..1).unwrap().remove(0));
    assert_eq!(and.text, "11010 00101 -> 00000\n11100 00001 -> 00000\n01111 11001 -> ");
    assert_eq!(
        format!("{}{}", null.text, null.answer),
        "11111 00011 -> 11000\n10000 10010 -> 11000\n00000 00010 -> 00111"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Demonstrations are right, of the part asked for, all different and never the query; fewer shots show the first of
    /// more; every item is asked for once before any is asked for twice.
    #[test]
    fn nothing_leaks(seed in any::<u64>(), task in 0..7usize, train in any::<bool>(), shots in 0..12u32) {
        let (spec, tokenizer) = (bitwise(), tokenizer("llama3"));
        let set = TaskSet::load(&spec, seed).unwrap();
        let prompts = Prompts::new(&set, &spec, &tokenizer, None, seed).unwrap();
        let split = if train { Split::Train } else { Split::Test };
        let items = set.tasks()[task].items(split);
        let outputs: BTreeMap<&str, &str> = items.iter().map(|i| (i.input.as_str(), i.output.as_str())).collect();
        let series = Series { task, split, shots, replicate: 0 };
        let n = items.len() as u64;
        let (mut asked, zero) = (BTreeSet::new(), prompts.batch(Series { shots: 0, ..series }, 0..n).unwrap());
        for (prompt, without) in prompts.batch(series, 0..n).unwrap().iter().zip(&zero) {
            let (shown, query) = prompt.text.rsplit_once('\n').unwrap_or(("", &prompt.text));
            prop_assert_eq!(query, &without.text);
            let query = query.strip_suffix(" -> ").unwrap();
            prop_assert_eq!(outputs[query], &prompt.answer);
            let mut seen = BTreeSet::from([query]);
            for line in shown.lines() {
                let (input, output) = line.split_once(" -> ").unwrap();
                prop_assert_eq!(outputs.get(input), Some(&output));
                prop_assert!(seen.insert(input), "{} twice in {}", input, prompt.text);
            }
            prop_assert_eq!(seen.len(), shots as usize + 1);
            asked.insert(query.to_owned());
        }
        prop_assert_eq!(asked.len(), items.len());
        let fewer = prompts.batch(Series { shots: shots / 2, ..series }, 0..5).unwrap();
        for (few, many) in fewer.iter().zip(prompts.batch(series, 0..5).unwrap()) {
            let lines: Vec<&str> = few.text.lines().take(shots as usize / 2).collect();
            prop_assert_eq!(lines, many.text.lines().take(shots as usize / 2).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_task_is_named_in_the_first_line() {
    let tokenizer = tokenizer("llama3");
    let first = |spec: NaturalSpec| -> BTreeSet<String> {
        let spec = NaturalSpec { instruction: Instruction::Named, ..spec };
        let lines = prompts(&spec, &tokenizer, 2).unwrap();
        lines.iter().map(|p| p.text.lines().next().unwrap().to_owned()).collect()
    };
    let of_bitwise = first(bitwise());
    assert!(of_bitwise.len() == 7 && of_bitwise.contains("NAND") && of_bitwise.contains("Random digits"));
    let of_pos = first(pos());
    assert!(of_pos.contains("Find the first noun in the sentence."), "{of_pos:?}");
    assert!(of_pos.contains("Find a random word in the sentence."));
    // Demonstrations are the same with and without.
    let named = NaturalSpec { instruction: Instruction::Named, ..bitwise() };
    let (with, without) = (prompts(&named, &tokenizer, 3).unwrap(), prompts(&bitwise(), &tokenizer, 3).unwrap());
    assert!(with.iter().zip(&without).all(|(a, b)| a.text.split_once('\n').unwrap().1 == b.text));
}

#[test]
fn limits_are_stated_with_their_numbers() {
    let (spec, tokenizer) = (bitwise(), tokenizer("llama3"));
    let set = TaskSet::load(&spec, 1).unwrap();
    let prompts = Prompts::new(&set, &spec, &tokenizer, None, 1).unwrap();
    let longest = prompts.batch(series(0, 4), 0..1).unwrap().remove(0);
    let needed = longest.tokens.len() + longest.most_generated;
    let fits = Prompts::new(&set, &spec, &tokenizer, Some(needed), 1).unwrap();
    assert_eq!(fits.batch(series(0, 4), 0..1).unwrap()[0], longest);
    let tight = Prompts::new(&set, &spec, &tokenizer, Some(needed - 1), 1).unwrap();
    let error = tight.batch(series(0, 4), 0..1).unwrap_err().to_string();
    let want = format!("prompt 0 of task AND with 4 shots has {} tokens and up to", longest.tokens.len());
    assert!(error.starts_with(&want) && error.contains(&format!("context is {}", needed - 1)), "{error}");

    let many = NaturalSpec { shots: vec![1, 300], ..bitwise() };
    let error = Prompts::new(&set, &many, &tokenizer, None, 1).unwrap_err().to_string();
    assert!(error.contains("test items; 300 demonstrations and a query need 301"), "{error}");
    let none = Template { separator: String::new(), ..Template::default() };
    let error = Prompts::new(&set, &NaturalSpec { template: none, ..bitwise() }, &tokenizer, None, 1).unwrap_err();
    assert!(matches!(error, PromptError::NoSeparator));
    let digit = Template { separator: "01".into(), ..Template::default() };
    let error = Prompts::new(&set, &NaturalSpec { template: digit, ..bitwise() }, &tokenizer, None, 1).unwrap_err();
    assert!(error.to_string().contains("contains template.separator \"01\""), "{error}");
}

#[test]
fn answers_are_judged_on_the_tokens_that_a_model_writes() {
    let (spec, tokenizer) = (pos(), tokenizer("llama3"));
    let set = TaskSet::load(&spec, 1).unwrap();
    let prompts = Prompts::new(&set, &spec, &tokenizer, None, 1).unwrap();
    let write = |text: &str| tokenizer.encode(text).unwrap().tokens[tokenizer.prefix().len()..].to_vec();
    for prompt in prompts.batch(series(0, 4), 0..40).unwrap() {
        let judge = |text: &str| prompts.judge(&prompt, &write(text)).unwrap();
        let answer = &prompt.answer;
        for cut in 0..=prompt.answer_tokens.len() {
            assert_eq!(prompts.judge(&prompt, &prompt.answer_tokens[..cut]).unwrap(), Verdict::Open);
        }
        assert_eq!(judge(&format!(" {answer}\nThe next")), Verdict::Right);
        assert_eq!(judge(&format!("{answer}\n")), Verdict::Right, "the gap does not count");
        assert_eq!(judge(&format!(" {answer} again\n")), Verdict::Wrong);
        assert_eq!(judge(" zebra"), Verdict::Wrong);
        let ended = [&prompt.answer_tokens[..], &[1]].concat();
        assert_eq!(prompts.judge(&prompt, &ended).unwrap(), Verdict::Right, "an end token ends the answer");
        let half = [&prompt.answer_tokens[..prompt.answer_tokens.len() - 1], &[1]].concat();
        assert_eq!(prompts.judge(&prompt, &half).unwrap(), Verdict::Wrong);
        let blanks = [&prompt.answer_tokens[..], &write(" ").repeat(prompt.most_generated)].concat();
        assert_eq!(prompts.judge(&prompt, &blanks).unwrap(), Verdict::Right, "the limit ends it too");
    }
}
