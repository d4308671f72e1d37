//! Rows that begin alike give the very numbers that they give alone, and go on as they do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::Tensor;
use common::language::{self, Expected, MODELS, assert_same};
use proptest::prelude::*;
use taskvec_science::{
    hook::{BlockPoint, Capture, HookPoint, Tokens},
    model::language::{Batch, LanguageModel, Logits, go_on},
};

/// Rows of which the first three begin alike, as do two others, and one begins like none.
fn rows(name: &str) -> Vec<Vec<u32>> {
    let batch = Expected::of(name).batch();
    let whole = |row: usize, len: usize| batch.row(row)[..len].to_vec();
    let (a, b) = (whole(0, 7), whole(1, 5));
    let row = |begin: &[u32], end: &[u32]| [begin, end].concat();
    vec![row(&a, &[1, 2]), row(&b, &[9, 3, 4, 5]), row(&a, &[7]), vec![11, 12, 13], row(&b, &[8]), row(&a, &[1, 2])]
}

/// States after every block at the last token and at the one that `most` names; what comes next; what the model goes on with.
fn looked(
    model: &LanguageModel,
    batch: &Batch,
    sites: &[Vec<usize>],
    cached: bool,
) -> (Vec<Tensor>, Tensor, Vec<Vec<u32>>) {
    let points: Vec<HookPoint> = (0..=model.config().layers).map(HookPoint::hidden).collect();
    let mut capture = Capture::new(points.clone(), Tokens::by_row(sites.iter().cloned().enumerate()));
    let mut cache = model.cache(batch.len()).unwrap();
    let hold = cached.then_some(&mut cache);
    let logits = model.forward(batch, hold, Some(&mut capture), Logits::Last).unwrap().unwrap();
    let states = points.into_iter().map(|point| capture.take(point).unwrap()).collect();
    let answers = match cached {
        true => go_on(model, &mut cache, logits.clone(), 40, |row, tokens| tokens.len() > 30 + row, None).unwrap(),
        false => Vec::new(),
    };
    (states, logits, answers)
}

fn check(name: &str, model: &LanguageModel, rows: &[Vec<u32>], most: &[usize]) {
    let sites: Vec<Vec<usize>> =
        rows.iter().zip(most).map(|(row, most)| vec![row.len() - 1, (*most).min(row.len() - 1)]).collect();
    for cached in [false, true] {
        let alone = looked(model, &Batch::new(rows).unwrap(), &sites, cached);
        let shared = looked(model, &Batch::sharing(rows, most).unwrap(), &sites, cached);
        for (alone, shared) in alone.0.iter().zip(&shared.0) {
            assert_same(name, shared, alone);
        }
        assert_same(name, &shared.1, &alone.1);
        assert_eq!(shared.2, alone.2, "{name}");
    }
}

#[test]
fn every_model_gives_the_same_and_computes_less() {
    for name in MODELS {
        let (model, rows) = (language::load(name), rows(name));
        let most = vec![usize::MAX; rows.len()];
        let tokens: usize = rows.iter().map(Vec::len).sum();
        // 7 tokens for two of three rows, 5 for one of two; the first and the last row, which are the same, share no more.
        assert_eq!(Batch::sharing(&rows, &most).unwrap().tokens().len(), tokens - 2 * 7 - 5, "{name}");
        check(name, &model, &rows, &most);
        check(name, &model, &rows, &[3, 2, 7, 0, 4, 6]);
        check(name, &model, &rows, &[0; 6]);
    }
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let (model, rows) = (language::load("llama"), rows("llama"));
    let batch = Batch::sharing(&rows, &[9; 6]).unwrap();
    let refused = |result: Result<_, taskvec_science::ScienceError>, why: &str| match result {
        Err(error) => assert!(error.to_string().contains(why), "{error}"),
        Ok(_) => panic!("not refused: {why}"),
    };
    let mut cache = model.cache(rows.len()).unwrap();
    model.forward(&Batch::new(&rows).unwrap(), Some(&mut cache), None, Logits::None).unwrap();
    refused(model.forward(&batch, Some(&mut cache), None, Logits::None), "rows that go on cannot share");
    let mut pattern = Capture::new([HookPoint::Block(0, BlockPoint::Pattern)], Tokens::last());
    refused(model.forward(&batch, None, Some(&mut pattern), Logits::None), "no attention patterns of their own");
    // A token that the model does not know is found in what is shared, too.
    let unknown: Vec<Vec<u32>> = rows.iter().map(|row| [&[1 << 20], &row[..]].concat()).collect();
    refused(model.forward(&Batch::sharing(&unknown, &[9; 6]).unwrap(), None, None, Logits::None), "1048576");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Few different tokens, so that much is shared in many ways.
    #[test]
    fn any_rows_give_the_same(
        rows in prop::collection::vec(prop::collection::vec(0u32..3, 1..40), 1..9),
        seed in any::<u64>(),
        model in 0..MODELS.len(),
    ) {
        let most: Vec<usize> = (0..rows.len()).map(|i| (seed >> (7 * i)) as usize % 48).collect();
        check(MODELS[model], &language::load(MODELS[model]), &rows, &most);
    }
}
