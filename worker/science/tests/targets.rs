//! What is learnt after a prompt: the answer and the token that ends it, whatever the tokenizer merges.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::fixture;
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::spec::{Corpus, Family, Instruction, NaturalSpec, Template};
use taskvec_science::{
    task::{Prompts, Series, Split, TaskSet, Verdict},
    tokenizer::Tokenizer,
};

fn spec(family: Family, template: Template) -> NaturalSpec {
    NaturalSpec { family, shots: vec![1], tasks: Vec::new(), template, instruction: Instruction::None }
}

fn separated_by(separator: &str) -> Template {
    Template { separator: separator.into(), ..Template::default() }
}

/// The pieces of prompts' targets, and those of their answers alone.
fn targets(spec: &NaturalSpec, tokenizer: &Tokenizer, split: Split) -> Vec<(Vec<String>, Vec<String>)> {
    let set = TaskSet::load(spec, 1).unwrap();
    let prompts = Prompts::new(&set, spec, tokenizer, None, 1).unwrap();
    let mut all = Vec::new();
    for task in 0..set.tasks().len() {
        for prompt in prompts.batch(Series { task, split, shots: 1, replicate: 0 }, 0..5).unwrap() {
            let target = prompts.target(&prompt).unwrap();
            let pieces = |tokens: &[u32]| tokens.iter().map(|t| tokenizer.piece(*t)).collect::<Vec<_>>();
            // Who writes it has answered rightly, or needs only the rest of the separator for it.
            assert_ne!(prompts.judge(&prompt, &target).unwrap(), Verdict::Wrong, "{:?}", pieces(&target));
            all.push((pieces(&target), pieces(&prompt.answer_tokens)));
        }
    }
    all
}

#[test]
fn the_token_after_the_answer_ends_it() {
    for name in ["llama3", "gemma"] {
        let tokenizer = Tokenizer::from_folder(&fixture("tokenizer").join(name)).unwrap();
        for family in [Family::Bitwise { digits: 5 }, Family::Pos { corpus: Corpus::Bundled }] {
            for (target, answer) in targets(&spec(family, Template::default()), &tokenizer, Split::Train) {
                assert_eq!(target[..answer.len()], answer, "{name}");
                assert_eq!(target.len(), answer.len() + 1, "{name}: {target:?}");
                assert!(["Ċ", "\n", "<0x0A>"].contains(&target[answer.len()].as_str()), "{name}: {target:?}");
            }
        }
    }
}

/// Digits, blanks and a few signs; `1` and a line break are merged, `0` and a line break are not.
fn merging() -> Tokenizer {
    let merges = [["1", "\n"], ["-", ">"]];
    let single = ["0", "1", "\n", " ", "-", ">", ";"].map(String::from).into_iter();
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

#[test]
fn an_answer_merged_with_what_ends_it_ends_with_the_merged_token() {
    let all = targets(&spec(Family::Bitwise { digits: 3 }, Template::default()), &merging(), Split::Test);
    let (mut merged, mut apart) = (0, 0);
    for (target, answer) in all {
        match answer.last().map(String::as_str) {
            Some("1") => {
                merged += 1;
                assert_eq!(target[..2], answer[..2]);
                assert_eq!(target[2..], ["1\n"]);
            }
            _ => {
                apart += 1;
                assert_eq!(target, [&answer[..], &["\n".to_owned()]].concat());
            }
        }
    }
    assert!(merged > 5 && apart > 5);
}

#[test]
fn of_a_longer_separator_only_the_first_token_is_learnt() {
    let spec = spec(Family::Bitwise { digits: 3 }, separated_by(" ; "));
    for (target, answer) in targets(&spec, &merging(), Split::Test) {
        assert_eq!(target, [&answer[..], &[" ".to_owned()]].concat());
    }
}
