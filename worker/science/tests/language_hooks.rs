//! Hooks see what the model computes, and change what they say and nothing else.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{D, DType, Device, Result, Tensor};
use common::language::{self, Expected, MODELS, assert_close, assert_same, part};
use taskvec_science::{
    hook::{BlockPoint, Capture, Chain, Change, Edit, Hook, HookPoint, Tokens},
    model::language::{Batch, LanguageModel, Logits, MixerConfig, Rows, generate},
};

fn points(model: &LanguageModel) -> Vec<HookPoint> {
    let config = model.config();
    let blocks = (0..config.layers).flat_map(|i| config.points().iter().map(move |point| HookPoint::Block(i, *point)));
    std::iter::once(HookPoint::Embed).chain(blocks).collect()
}

fn logits(model: &LanguageModel, batch: &Batch, hook: Option<&mut dyn Hook>) -> Tensor {
    model.forward(batch, None, hook, Logits::All).unwrap().unwrap()
}

/// Everything that a pass computes.
fn everything(model: &LanguageModel, batch: &Batch) -> Capture {
    let mut capture = Capture::new(points(model), Tokens::all());
    logits(model, batch, Some(&mut capture));
    capture
}

fn is_pattern(point: HookPoint) -> bool {
    matches!(point, HookPoint::Block(_, BlockPoint::Pattern))
}

#[test]
fn looking_at_everything_changes_nothing() {
    for name in MODELS {
        let (model, batch) = (language::load(name), Expected::of(name).batch());
        let mut capture = Capture::new(points(&model), Tokens::all());
        assert_same(name, &logits(&model, &batch, Some(&mut capture)), &logits(&model, &batch, None));
        for point in points(&model) {
            let visits = if is_pattern(point) { 3 } else { 1 };
            assert_eq!(capture.visits(point).len(), visits, "{name}: {point}");
        }
    }
}

#[test]
fn points_are_visited_in_the_order_of_the_pass_and_only_where_wanted() {
    struct Order(Vec<HookPoint>, fn(HookPoint) -> bool);
    impl Hook for Order {
        fn wants(&self, point: HookPoint) -> bool {
            self.1(point)
        }
        fn visit(&mut self, point: HookPoint, _: &Tensor, rows: &Rows) -> Result<Option<Tensor>> {
            assert_eq!(rows.len(), if is_pattern(point) { 1 } else { 3 });
            self.0.push(point);
            Ok(None)
        }
    }
    let (model, batch) = (language::load("gemma2"), Expected::of("gemma2").batch());
    let seen = |wants: fn(HookPoint) -> bool| {
        let mut order = Order(Vec::new(), wants);
        logits(&model, &batch, Some(&mut order));
        order.0.dedup();
        order.0
    };
    assert_eq!(seen(|_| true), points(&model));
    assert_eq!(seen(|_| false), []);
    assert_eq!(seen(|point| point == HookPoint::Embed), [HookPoint::Embed]);
    // A closure is asked about the points of width d.
    let mut by_closure = Vec::new();
    let mut closure = |point: HookPoint, x: &Tensor| {
        assert_eq!(x.dims(), [68, 24], "{point}");
        by_closure.push(point);
        Ok(None)
    };
    logits(&model, &batch, Some(&mut closure));
    assert_eq!(by_closure, seen(HookPoint::is_residual));
}

#[test]
fn what_is_added_makes_the_residual_stream() {
    for name in MODELS {
        let (model, batch) = (language::load(name), Expected::of(name).batch());
        let mut kept = everything(&model, &batch);
        let mut x = kept.take(HookPoint::Embed).unwrap();
        for i in 0..model.config().layers {
            let mut at = |point| kept.take(HookPoint::Block(i, point)).unwrap();
            assert_same(name, &at(BlockPoint::ResidPre), &x);
            let mid = (&x + at(BlockPoint::AttnOut)).unwrap();
            assert_same(name, &at(BlockPoint::ResidMid), &mid);
            let post = (&mid + at(BlockPoint::MlpOut)).unwrap();
            assert_same(name, &at(BlockPoint::ResidPost), &post);
            x = post;
        }
        assert_same(name, &model.logits(&x).unwrap(), &logits(&model, &batch, None));
    }
}

#[test]
fn patterns_sum_to_one_and_read_the_values() {
    for name in MODELS {
        let (model, batch) = (language::load(name), Expected::of(name).batch());
        let MixerConfig::Attention(attention) = model.config().mixer.clone() else { panic!("no attention") };
        let mut kept = everything(&model, &batch);
        for block in 0..model.config().layers {
            let at = |point| HookPoint::Block(block, point);
            let (v, z) = (kept.take(at(BlockPoint::V)).unwrap(), kept.take(at(BlockPoint::Z)).unwrap());
            for (row, pattern) in kept.visits(at(BlockPoint::Pattern)).iter().enumerate() {
                let t = batch.range(row).len();
                assert_eq!(pattern.dims(), [attention.heads, t, t]);
                let sums = pattern.sum(D::Minus1).unwrap();
                assert_close("sums", &sums, &sums.ones_like().unwrap(), 1e-5);
                for head in 0..attention.heads {
                    let group = head * attention.groups / attention.heads;
                    let values = part(&v, batch.range(row)).narrow(1, group, 1).unwrap().squeeze(1).unwrap();
                    let read = pattern.get(head).unwrap().matmul(&values.contiguous().unwrap()).unwrap();
                    let theirs = part(&z, batch.range(row)).narrow(1, head, 1).unwrap().squeeze(1).unwrap();
                    assert_close(&format!("{name}: head {head}"), &read, &theirs, 1e-5);
                }
            }
        }
    }
}

#[test]
fn a_state_replaced_by_itself_changes_nothing() {
    for name in MODELS {
        let (model, batch) = (language::load(name), Expected::of(name).batch());
        let plain = logits(&model, &batch, None);
        let mut kept = everything(&model, &batch);
        for point in points(&model).into_iter().filter(|p| !is_pattern(*p)) {
            let state = kept.take(point).unwrap();
            let mut all = Edit::new(point, Tokens::all(), Change::Replace(state.clone()));
            assert_same(&point.to_string(), &logits(&model, &batch, Some(&mut all)), &plain);
            let mut nothing = Edit::new(point, Tokens::all(), Change::Add(state.zeros_like().unwrap()));
            assert_same(&point.to_string(), &logits(&model, &batch, Some(&mut nothing)), &plain);
            if state.rank() == 3 {
                let head = state.dim(1).unwrap() - 1;
                let one = state.narrow(1, head, 1).unwrap().contiguous().unwrap();
                let mut edit = Edit::new(point, Tokens::all(), Change::Replace(one)).head(head);
                assert_same(&point.to_string(), &logits(&model, &batch, Some(&mut edit)), &plain);
            }
        }
    }
}

#[test]
fn patching_one_row_leaves_the_others_alone() {
    for name in MODELS {
        let (model, batch) = (language::load(name), Expected::of(name).batch());
        let plain = logits(&model, &batch, None);
        for point in points(&model).into_iter().filter(|p| !is_pattern(*p)) {
            // Also the second token, of which later ones of the row read, but not the first.
            let tokens = || Tokens::at([1]).in_rows([1]);
            for change in [Change::Zero, Change::Add(shape_of(&model, point))] {
                let mut edit = Edit::new(point, tokens(), change);
                let patched = logits(&model, &batch, Some(&mut edit));
                let changed = batch.range(1).start + 1..batch.range(1).end;
                assert_same(name, &part(&patched, 0..changed.start), &part(&plain, 0..changed.start));
                assert_same(name, &part(&patched, batch.range(2)), &part(&plain, batch.range(2)));
                let (a, b) = (language::flat(&part(&patched, changed.clone())), language::flat(&part(&plain, changed)));
                assert_ne!(a, b, "{name}: {point} was changed");
            }
        }
    }
}

/// What is added to one token's state.
fn shape_of(model: &LanguageModel, point: HookPoint) -> Tensor {
    let MixerConfig::Attention(a) = model.config().mixer.clone() else { panic!("no attention") };
    let elements = match point {
        HookPoint::Block(_, BlockPoint::Q | BlockPoint::Z) => a.heads * a.head,
        HookPoint::Block(_, BlockPoint::K | BlockPoint::V) => a.groups * a.head,
        HookPoint::Block(_, BlockPoint::Result) => a.heads * model.config().width,
        _ => model.config().width,
    };
    let values: Vec<f32> = (0..elements).map(|i| 0.5 - (i % 3) as f32).collect();
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn heads_are_changed_one_by_one() {
    let (model, batch) = (language::load("olmo2"), Expected::of("olmo2").batch());
    let at = |point| HookPoint::Block(1, point);
    let zero = |head: usize| Edit::new(at(BlockPoint::Z), Tokens::all(), Change::Zero).head(head);
    let mut heads: Vec<Edit> = (0..4).map(zero).collect();
    let mut capture = Capture::new([at(BlockPoint::Z), at(BlockPoint::AttnOut)], Tokens::last());
    let (first, rest) = heads.split_first_mut().unwrap();
    logits(&model, &batch, Some(&mut Chain(vec![first, &mut capture])));
    let z = capture.take(at(BlockPoint::Z)).unwrap();
    assert_eq!(z.dims(), [3, 4, 6]);
    let size = |head: usize| language::flat(&z.narrow(1, head, 1).unwrap()).iter().map(|v| v.abs()).sum::<f64>();
    assert!(size(0) == 0.0 && (1..4).all(|head| size(head) > 0.0), "a hook sees what those before it did");
    // Without any head, attention adds nothing (OLMo-2 has no bias).
    let mut chain: Vec<&mut dyn Hook> = vec![first];
    chain.extend(rest.iter_mut().map(|edit| edit as &mut dyn Hook));
    let without = logits(&model, &batch, Some(&mut Chain(chain)));
    let mut none = Edit::new(at(BlockPoint::AttnOut), Tokens::all(), Change::Zero);
    assert_same("all heads", &without, &logits(&model, &batch, Some(&mut none)));
    let mut fifth = zero(4);
    let error = model.forward(&batch, None, Some(&mut fifth), Logits::None).unwrap_err().to_string();
    assert!(error.contains("blocks.1.attn.hook_z has no head 4"), "{error}");
}

/// Makes every query of the second row read its own token alone.
struct OwnTokenOnly;

impl Hook for OwnTokenOnly {
    fn wants(&self, point: HookPoint) -> bool {
        point == HookPoint::Block(0, BlockPoint::Pattern)
    }
    fn visit(&mut self, _: HookPoint, x: &Tensor, rows: &Rows) -> Result<Option<Tensor>> {
        let (heads, t, _) = x.dims3()?;
        let own = Tensor::eye(t, x.dtype(), x.device())?.broadcast_as((heads, t, t))?.contiguous()?;
        Ok(rows.iter().any(|row| row.index == 1).then_some(own))
    }
}

#[test]
fn a_replaced_pattern_is_read_by() {
    let (model, batch) = (language::load("olmo2"), Expected::of("olmo2").batch());
    let points = [BlockPoint::V, BlockPoint::Z].map(|point| HookPoint::Block(0, point));
    let mut capture = Capture::new(points, Tokens::all());
    let mut plain = everything(&model, &batch);
    logits(&model, &batch, Some(&mut Chain(vec![&mut OwnTokenOnly, &mut capture])));
    let (v, z) = (capture.take(points[0]).unwrap(), capture.take(points[1]).unwrap());
    let unchanged = plain.take(points[1]).unwrap();
    assert_same("row 0", &part(&z, batch.range(0)), &part(&unchanged, batch.range(0)));
    assert_same("row 2", &part(&z, batch.range(2)), &part(&unchanged, batch.range(2)));
    for head in 0..4 {
        let own = part(&v, batch.range(1)).narrow(1, head / 2, 1).unwrap();
        assert_close("row 1", &part(&z, batch.range(1)).narrow(1, head, 1).unwrap(), &own, 1e-6);
    }
}

#[test]
fn what_heads_add_is_seen_and_changed_one_by_one() {
    for name in ["llama", "gpt2", "olmo"] {
        let (model, batch) = (language::load(name), Expected::of(name).batch());
        let [z, result, out] = [BlockPoint::Z, BlockPoint::Result, BlockPoint::AttnOut].map(|p| HookPoint::Block(1, p));
        let read = |edit: Option<Edit>| {
            let mut capture = Capture::new([result, out], Tokens::all());
            match edit {
                Some(mut edit) => logits(&model, &batch, Some(&mut Chain(vec![&mut edit, &mut capture]))),
                None => logits(&model, &batch, Some(&mut capture)),
            };
            [result, out].map(|point| capture.take(point).unwrap())
        };
        let [results, added] = read(None);
        let (_, heads, width) = results.dims3().unwrap();
        assert_eq!(width, model.config().width);
        // Without any, what is left is the bias; with one, it is that and its own.
        let zero = |point, head| Edit::new(point, Tokens::all(), Change::Zero).head(head);
        let nothing = Edit::new(result, Tokens::all(), Change::Zero);
        let [_, bias] = read(Some(nothing));
        assert_close(name, &(results.sum(1).unwrap() + &bias).unwrap(), &added, 1e-5);
        for head in 0..heads {
            let [_, by_result] = read(Some(zero(result, head)));
            let [_, by_z] = read(Some(zero(z, head)));
            assert_close(name, &by_result, &by_z, 1e-5);
            let own = results.narrow(1, head, 1).unwrap().squeeze(1).unwrap();
            assert_close(name, &(&by_result + own).unwrap(), &added, 1e-5);
        }
    }
}

#[test]
fn patterns_are_edited_by_query_and_head() {
    let (model, batch) = (language::load("olmo2"), Expected::of("olmo2").batch());
    let [pattern, z] = [BlockPoint::Pattern, BlockPoint::Z].map(|point| HookPoint::Block(0, point));
    let read = |hook: Option<&mut dyn Hook>| {
        let mut capture = Capture::new([z], Tokens::all());
        match hook {
            Some(hook) => logits(&model, &batch, Some(&mut Chain(vec![hook, &mut capture]))),
            None => logits(&model, &batch, Some(&mut capture)),
        };
        capture.take(z).unwrap()
    };
    let plain = read(None);
    // Every query of a row reads its own token alone: as many patterns as there are queries.
    let t = batch.range(1).len();
    let own = Tensor::eye(t, DType::F32, &Device::Cpu).unwrap().unsqueeze(1).unwrap().broadcast_as((t, 4, t)).unwrap();
    let mut edit = Edit::new(pattern, Tokens::all().in_rows([1]), Change::Replace(own));
    assert_same("own tokens", &read(Some(&mut edit)), &read(Some(&mut OwnTokenOnly)));
    // One head of one query reads nothing.
    let mut edit = Edit::new(pattern, Tokens::at([2]).in_rows([1]), Change::Zero).head(3);
    let edited = read(Some(&mut edit));
    let at = batch.range(1).start + 2;
    let head = |z: &Tensor, head| part(z, at..at + 1).narrow(1, head, 1).unwrap();
    assert!(language::flat(&head(&edited, 3)).iter().all(|x| *x == 0.0));
    for other in 0..3 {
        assert_close("another head", &head(&edited, other), &head(&plain, other), 1e-6);
    }
    assert_same("rows before", &part(&edited, 0..batch.range(1).start), &part(&plain, 0..batch.range(1).start));
    assert_same("rows behind", &part(&edited, batch.range(2)), &part(&plain, batch.range(2)));
}

#[test]
fn positions_count_from_the_beginning_of_the_row_whatever_is_cached() {
    let (model, expected) = (language::load("llama"), Expected::of("llama"));
    let point = HookPoint::hidden(2);
    let tokens = || Tokens::by_row([(0, vec![35, 3]), (2, vec![6])]);
    let mut whole = Capture::new([point], tokens());
    logits(&model, &expected.batch(), Some(&mut whole));
    let whole = whole.take(point).unwrap();
    let mut pieces = Capture::new([point], tokens());
    let mut cache = model.cache(3).unwrap();
    let cut = |from: [usize; 3], to: [usize; 3]| Batch::new((0..3).map(|i| &expected.rows[i][from[i]..to[i]])).unwrap();
    let ends = [[0, 0, 0], [30, 20, 5], [40, 21, 7]];
    for (from, to) in [(ends[0], ends[1]), (ends[1], ends[2])] {
        model.forward(&cut(from, to), Some(&mut cache), Some(&mut pieces), Logits::None).unwrap();
    }
    // The first pass brought position 3 of row 0, the second the others.
    let order = Tensor::new(&[1u32, 0, 2], &Device::Cpu).unwrap();
    assert_close("states", &pieces.take(point).unwrap(), &whole.index_select(&order, 0).unwrap(), 1e-5);
    assert!(pieces.take(point).is_err(), "what was taken is gone");
}

#[test]
fn a_prompt_is_patched_while_others_beside_it_are_not() {
    let (model, expected) = (language::load("llama"), Expected::of("llama"));
    let plain = generate(&model, &expected.batch(), 6, |_, _| false, None).unwrap();
    let last = expected.rows[1].len() - 1;
    let state = Tensor::full(2.0f32, 24, &Device::Cpu).unwrap();
    let mut edit = Edit::new(HookPoint::hidden(3), Tokens::by_row([(1, vec![last])]), Change::Replace(state));
    // Row 0 ends first: rows keep their names.
    let patched = generate(&model, &expected.batch(), 6, |row, t| row == 0 && t.len() == 1, Some(&mut edit)).unwrap();
    assert_eq!(patched[0], plain[0][..1]);
    assert_eq!(patched[2], plain[2]);
    assert_ne!(patched[1], plain[1]);
}

#[test]
fn a_shape_that_does_not_fit_is_named() {
    let (model, batch) = (language::load("llama"), Expected::of("llama").batch());
    let fails = |hook: &mut dyn Hook| model.forward(&batch, None, Some(hook), Logits::None).unwrap_err().to_string();
    let mut narrow =
        |point: HookPoint, x: &Tensor| if point == HookPoint::Embed { x.narrow(1, 0, 3).map(Some) } else { Ok(None) };
    let error = fails(&mut narrow);
    assert!(error.contains("hook_embed returned [68, 3] in place of [68, 24]"), "{error}");
    let value = Change::Add(Tensor::zeros(7, candle_core::DType::F32, &Device::Cpu).unwrap());
    let error = fails(&mut Edit::new(HookPoint::hidden(1), Tokens::last(), value));
    assert!(error.contains("do not fit 3 tokens with 24 elements each"), "{error}");
}
