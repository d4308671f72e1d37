//! Going on from a cache gives what computing everything anew gives.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::Tensor;
use common::language::{self, Expected, MODELS, assert_close, part};
use proptest::prelude::*;
use taskvec_science::{
    ScienceError,
    model::language::{Batch, Cache, LanguageModel, Logits, generate, go_on},
};

/// Rounding differs with the number of rows that a product has.
const ROUNDING: f64 = 1e-5;

/// Logits of every token of every row, each row computed on its own.
fn from_scratch(model: &LanguageModel, rows: &[Vec<u32>]) -> Vec<Tensor> {
    let row = |row: &Vec<u32>| model.forward(&Batch::new([row]).unwrap(), None, None, Logits::All).unwrap().unwrap();
    rows.iter().map(row).collect()
}

/// Passes the next tokens of every row, and checks their logits against those of the whole rows.
fn pass(model: &LanguageModel, cache: &mut Cache, next: &[&[u32]], whole: &[Tensor]) {
    let before: Vec<usize> = (0..next.len()).map(|i| cache.len(i)).collect();
    let batch = Batch::new(next).unwrap();
    let logits = model.forward(&batch, Some(cache), None, Logits::All).unwrap().unwrap();
    for (i, tokens) in next.iter().enumerate() {
        assert_eq!(cache.len(i), before[i] + tokens.len());
        let wanted = part(&whole[i], before[i]..before[i] + tokens.len());
        assert_close(&format!("row {i} from {}", before[i]), &part(&logits, batch.range(i)), &wanted, ROUNDING);
    }
}

fn piecewise(model: &LanguageModel, rows: &[Vec<u32>], cuts: &[Vec<usize>]) {
    let whole = from_scratch(model, rows);
    let mut cache = model.cache(rows.len()).unwrap();
    for pass_number in 0..cuts[0].len() - 1 {
        let next: Vec<&[u32]> =
            rows.iter().zip(cuts).map(|(row, cuts)| &row[cuts[pass_number]..cuts[pass_number + 1]]).collect();
        pass(model, &mut cache, &next, &whole);
    }
}

/// Where each row is cut into four pieces, none empty.
fn cuts(rows: &[Vec<u32>]) -> impl Strategy<Value = Vec<Vec<usize>>> + use<> {
    let row = |row: &Vec<u32>| {
        let length = row.len();
        prop::sample::subsequence((1..length).collect::<Vec<_>>(), 3)
            .prop_map(move |inner| [vec![0], inner, vec![length]].concat())
    };
    rows.iter().map(row).collect::<Vec<_>>()
}

#[test]
fn rows_cut_anywhere_give_the_same() {
    for name in MODELS {
        let (model, rows) = (language::load(name), Expected::of(name).rows);
        let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new_with_rng(
            config,
            proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
        );
        runner
            .run(&cuts(&rows), |cuts| {
                piecewise(&model, &rows, &cuts);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn token_by_token_gives_the_same() {
    for name in MODELS {
        let (model, rows) = (language::load(name), Expected::of(name).rows);
        let rows: Vec<Vec<u32>> = rows.into_iter().map(|row| row[..7].to_vec()).collect();
        piecewise(&model, &rows, &[(0..=7).collect(), (0..=7).collect(), (0..=7).collect()]);
    }
}

#[test]
fn rows_branch_from_what_they_share() {
    for name in MODELS {
        let (model, rows) = (language::load(name), Expected::of(name).rows);
        let (long, other) = (&rows[0], &rows[1]);
        let mut stems = model.cache(2).unwrap();
        model.forward(&Batch::new([&long[..12], &other[..5]]).unwrap(), Some(&mut stems), None, Logits::None).unwrap();
        // Three rows go on after the first stem, one after the second; then two go on after the branches.
        let tails = [&long[12..20], &other[5..9], &other[9..10], &long[20..23]];
        let parents = [0, 1, 0, 0];
        let stem = |parent| if parent == 0 { &long[..12] } else { &other[..5] };
        let whole: Vec<Vec<u32>> = parents.iter().zip(tails).map(|(p, tail)| [stem(*p), tail].concat()).collect();
        let mut branches = stems.branch(&parents).unwrap();
        pass(&model, &mut branches, &tails, &from_scratch(&model, &whole));
        let mut twigs = branches.branch(&[3, 1]).unwrap();
        let further = [&other[10..16], &long[30..33]];
        let whole = [[&whole[3][..], further[0]].concat(), [&whole[1][..], further[1]].concat()];
        pass(&model, &mut twigs, &further, &from_scratch(&model, &whole));
        // The branches are as they were.
        assert_eq!((stems.len(0), stems.len(1), branches.len(0)), (12, 5, 20), "{name}");
    }
}

#[test]
fn a_row_that_is_cut_back_goes_on_in_another_way() {
    for name in MODELS {
        let (model, rows) = (language::load(name), Expected::of(name).rows);
        let (one, two) = (rows[0][..15].to_vec(), [&rows[0][..9], &rows[1][..8]].concat());
        let mut cache = model.cache(1).unwrap();
        pass(&model, &mut cache, &[&one], &from_scratch(&model, std::slice::from_ref(&one)));
        cache.truncate(0, 9).unwrap();
        pass(&model, &mut cache, &[&two[9..]], &from_scratch(&model, std::slice::from_ref(&two)));
        let mut branch = cache.branch(&[0, 0]).unwrap();
        assert!(branch.truncate(0, 16).is_err(), "what is shared stays");
        assert!(branch.truncate(0, 18).is_err(), "there are no 18 tokens");
        branch.truncate(0, 17).unwrap();
    }
}

#[test]
fn rows_leave_and_the_others_go_on() {
    let (model, rows) = (language::load("gemma2"), Expected::of("gemma2").rows);
    let whole = from_scratch(&model, &rows);
    let mut cache = model.cache(3).unwrap();
    pass(&model, &mut cache, &[&rows[0][..4], &rows[1][..2], &rows[2][..6]], &whole);
    cache.retain(&[0, 2]);
    let whole = [whole[0].clone(), whole[2].clone()];
    pass(&model, &mut cache, &[&rows[0][4..40], &rows[2][6..7]], &whole);
    assert_eq!(cache.rows(), 2);
}

#[test]
fn generation_equals_transformers_token_for_token() {
    for name in MODELS {
        let (model, expected) = (language::load(name), Expected::of(name));
        let theirs: Vec<Vec<i64>> = expected.tensors["generated"].to_vec2::<i64>().unwrap();
        let theirs: Vec<Vec<u32>> = theirs.into_iter().map(|row| row.into_iter().map(|t| t as u32).collect()).collect();
        let ours = generate(&model, &expected.batch(), 8, |_, _| false, None).unwrap();
        assert_eq!(ours, theirs, "{name}");
        // A row that stops early is the beginning of itself, and changes nothing for the others.
        let stopped =
            generate(&model, &expected.batch(), 8, |row, tokens| row == 1 && tokens.len() == 3, None).unwrap();
        assert_eq!(stopped, [theirs[0].clone(), theirs[1][..3].to_vec(), theirs[2].clone()], "{name}");
        assert_eq!(generate(&model, &expected.batch(), 0, |_, _| false, None).unwrap(), [[0u32; 0]; 3]);
    }
}

#[test]
fn generation_goes_on_from_a_pass_already_made() {
    let (model, expected) = (language::load("llama"), Expected::of("llama"));
    let rows: Vec<&[u32]> = expected.rows.iter().map(Vec::as_slice).collect();
    let mut stem = model.cache(1).unwrap();
    model.forward(&Batch::new([&rows[0][..30]]).unwrap(), Some(&mut stem), None, Logits::None).unwrap();
    let mut cache = stem.branch(&[0, 0]).unwrap();
    let tails = Batch::new([&rows[0][30..], &rows[1][..4]]).unwrap();
    let logits = model.forward(&tails, Some(&mut cache), None, Logits::Last).unwrap().unwrap();
    let ours = go_on(&model, &mut cache, logits, 5, |_, _| false, None).unwrap();
    let whole = Batch::new([rows[0].to_vec(), [&rows[0][..30], &rows[1][..4]].concat()]).unwrap();
    assert_eq!(ours, generate(&model, &whole, 5, |_, _| false, None).unwrap());
}

#[test]
fn a_full_context_ends_a_row_and_a_longer_one_is_refused() {
    let (model, expected) = (language::load("gpt2"), Expected::of("gpt2"));
    let ours = generate(&model, &expected.batch(), 1000, |_, _| false, None).unwrap();
    // 56 positions: the token after the last of them has none, but is still predicted.
    assert_eq!(ours.iter().map(Vec::len).collect::<Vec<_>>(), [17, 36, 50]);
    let mut cache = model.cache(2).unwrap();
    let row = [1u32; 40];
    model.forward(&Batch::new([&row[..40], &row[..3]]).unwrap(), Some(&mut cache), None, Logits::None).unwrap();
    let long = model.forward(&Batch::new([&row[..17], &row[..3]]).unwrap(), Some(&mut cache), None, Logits::None);
    assert!(matches!(long, Err(ScienceError::TooLong { row: 0, tokens: 57, context: 56 })));
    let unknown = model.forward(&Batch::new([[60, 61]]).unwrap(), None, None, Logits::None);
    assert!(matches!(unknown, Err(ScienceError::UnknownToken { row: 0, token: 61, vocabulary: 61 })));
    assert!(Batch::new([vec![1], vec![]]).is_err(), "an empty row has no last token");
}
