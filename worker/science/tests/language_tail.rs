//! The last block is computed for the tokens that somebody asks for, and gives them the very numbers that it gives all.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{Result, Tensor};
use common::language::{self, Expected, MODELS, assert_same};
use taskvec_science::{
    hook::{BlockPoint, Capture, Chain, Change, Edit, Hook, HookPoint, Tokens},
    model::language::{Batch, LanguageModel, Logits, Rows},
};

/// What it sees of the last block behind keys and values.
const BEHIND: [BlockPoint; 5] =
    [BlockPoint::Z, BlockPoint::AttnOut, BlockPoint::ResidMid, BlockPoint::MlpOut, BlockPoint::ResidPost];

/// Counts the tokens that the last block is computed for, and asks for none.
struct Count {
    at: HookPoint,
    tokens: usize,
}

impl Hook for Count {
    fn wants(&self, point: HookPoint) -> bool {
        point == self.at
    }

    fn looks_at(&self, _: HookPoint, _: &Rows) -> Option<Vec<u32>> {
        Some(Vec::new())
    }

    fn visit(&mut self, _: HookPoint, x: &Tensor, rows: &Rows) -> Result<Option<Tensor>> {
        self.tokens = rows.tokens();
        assert_eq!(x.dim(0)?, self.tokens);
        Ok(None)
    }
}

fn behind(model: &LanguageModel) -> impl Iterator<Item = HookPoint> {
    let last = model.config().layers - 1;
    BEHIND.into_iter().map(move |point| HookPoint::Block(last, point))
}

/// What a capture of `tokens` keeps of the last block, with the first half of every row in a cache or not; logits of the last
/// tokens; and for how many tokens the last block was computed.
fn passed(model: &LanguageModel, batch: &Batch, cached: bool, tokens: &Tokens) -> (Vec<Tensor>, Tensor, usize) {
    let mut capture = Capture::new(behind(model), tokens.clone());
    let mut count = Count { at: behind(model).next().unwrap(), tokens: 0 };
    let half = |row: &[u32]| if cached { row.len() / 2 } else { 0 };
    let rows = || (0..batch.len()).map(|i| batch.row(i));
    let mut cache = model.cache(batch.len()).unwrap();
    if cached {
        let first = Batch::new(rows().map(|row| &row[..half(row)])).unwrap();
        model.forward(&first, Some(&mut cache), None, Logits::None).unwrap();
    }
    let rest = Batch::new(rows().map(|row| &row[half(row)..])).unwrap();
    let mut hook = Chain(vec![&mut capture, &mut count]);
    let logits = model.forward(&rest, Some(&mut cache), Some(&mut hook), Logits::Last).unwrap().unwrap();
    (behind(model).map(|point| capture.take(point).unwrap()).collect(), logits, count.tokens)
}

#[test]
fn those_asked_for_are_the_same_and_the_others_are_left_out() {
    for name in MODELS {
        let (model, batch) = (language::load(name), Expected::of(name).batch());
        let lengths: Vec<usize> = (0..batch.len()).map(|i| batch.range(i).len()).collect();
        for cached in [false, true] {
            let (all, logits, most) = passed(&model, &batch, cached, &Tokens::all());
            let rest: Vec<usize> = lengths.iter().map(|&len| if cached { len - len / 2 } else { len }).collect();
            assert_eq!(most, rest.iter().sum::<usize>());
            let back = |row: usize, from_end: usize| lengths[row] - from_end;
            let (first, second) = (vec![back(0, 4), back(0, 2)], vec![back(2, 3)]);
            // A row's tokens may be asked for in any order, and of a row none.
            let some = Tokens::by_row([(0, first.clone()), (2, second)]);
            let mut starts = vec![0];
            rest.iter().for_each(|len| starts.push(starts.last().unwrap() + len));
            let end = |row: usize| starts[row + 1];
            for (tokens, places, kept) in [
                (Tokens::last(), (0..3).map(|row| end(row) - 1).collect(), 3),
                (some, vec![end(0) - 4, end(0) - 2, end(2) - 3], 4 + 1 + 3),
            ] {
                let (part, same_logits, computed) = passed(&model, &batch, cached, &tokens);
                assert_eq!(computed, kept, "{name}");
                assert_same(name, &same_logits, &logits);
                let places: Vec<u32> = places.into_iter().map(|place| place as u32).collect();
                let places = Tensor::new(places, all[0].device()).unwrap();
                for (part, all) in part.iter().zip(&all) {
                    assert_same(name, part, &all.index_select(&places, 0).unwrap());
                }
            }
        }
    }
}

#[test]
fn what_is_changed_is_changed_where_it_is_meant() {
    for name in MODELS {
        let (model, batch) = (language::load(name), Expected::of(name).batch());
        for point in behind(&model) {
            let tokens = Tokens::last().in_rows([1]);
            let edit = || Edit::new(point, tokens.clone(), Change::Zero);
            let (mut alone, mut beside) = (edit(), edit());
            let mut everything = Capture::new(behind(&model), Tokens::all());
            let logits = |hook: &mut dyn Hook| model.forward(&batch, None, Some(hook), Logits::Last).unwrap().unwrap();
            let narrow = logits(&mut alone);
            assert_same(name, &narrow, &logits(&mut Chain(vec![&mut beside, &mut everything])));
            let untouched = model.forward(&batch, None, None, Logits::Last).unwrap().unwrap();
            let row = |x: &Tensor, i: usize| x.get(i).unwrap();
            assert_same(name, &row(&narrow, 0), &row(&untouched, 0));
            let moved = (row(&narrow, 1) - row(&untouched, 1)).unwrap().abs().unwrap().max_all().unwrap();
            assert!(moved.to_scalar::<f32>().unwrap() > 0.0, "{name}: {point}");
        }
    }
}
