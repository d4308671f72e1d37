//! Mamba-2 against HuggingFace transformers (tests/fixtures/mamba2.py), and against itself token by token.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use candle_core::{DType, Device, Result, Tensor};
use std::collections::HashMap;
use taskvec_science::{
    hook::{BlockPoint, Capture, Chain, Change, Edit, Hook, HookPoint, Tokens},
    load::{Files, Room},
    model::language::{Batch, LanguageModel, Logits, Rows, generate},
};

/// Largest error allowed, relative to the largest magnitude in the tensor.
const TOLERANCE: f64 = 1e-4;

const NAMES: [&str; 2] = ["one_group", "two_groups"];

struct Fixture {
    model: LanguageModel,
    expected: HashMap<String, Tensor>,
    rows: Vec<Vec<u32>>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let folder = common::fixture("mamba2").join(name);
        let files = Files::find(folder.to_str().unwrap(), None).unwrap();
        let expected = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let numbers = |key: &str| expected[key].to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap();
        let mut tokens = numbers("tokens").into_iter();
        let rows = numbers("lengths").iter().map(|n| tokens.by_ref().take(*n as usize).collect()).collect();
        Self { model: files.load(DType::F32, &[Room::cpu()]).unwrap(), expected, rows }
    }

    fn batch(&self) -> Batch {
        Batch::new(&self.rows).unwrap()
    }

    fn layers(&self) -> usize {
        self.model.config().layers
    }

    fn logits(&self, rows: &[Vec<u32>]) -> Tensor {
        self.model.forward(&Batch::new(rows).unwrap(), None, None, Logits::All).unwrap().unwrap()
    }
}

/// Largest error relative to the largest magnitude.
fn error(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (ours, theirs) = (flat(ours), flat(theirs));
    let scale = theirs.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(scale > 0.0);
    f64::from(ours.iter().zip(&theirs).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale)
}

fn state(block: usize) -> HookPoint {
    HookPoint::Block(block, BlockPoint::State)
}

#[test]
fn logits_states_and_everything_between_agree() {
    for name in NAMES {
        let fixture = Fixture::open(name);
        let mixer = |block| HookPoint::Block(block, BlockPoint::MixerOut);
        let points = (0..=fixture.layers())
            .map(HookPoint::hidden)
            .chain((0..fixture.layers()).flat_map(|i| [mixer(i), state(i)]));
        let mut capture = Capture::new(points, Tokens::all());
        let logits = fixture.model.forward(&fixture.batch(), None, Some(&mut capture), Logits::All).unwrap().unwrap();
        let check = |what: String, ours: &Tensor| {
            let error = error(ours, &fixture.expected[&what]);
            assert!(error < TOLERANCE, "{name}: {what} is off by {error:e}");
        };
        check("logits".into(), &logits);
        for i in 0..=fixture.layers() {
            check(format!("hidden.{i}"), &capture.take(HookPoint::hidden(i)).unwrap());
        }
        for i in 0..fixture.layers() {
            check(format!("mixer.{i}"), &capture.take(mixer(i)).unwrap());
            check(format!("state.{i}"), &Tensor::stack(capture.visits(state(i)), 0).unwrap());
        }
    }
}

#[test]
fn points_are_visited_in_the_order_of_the_pass() {
    /// Writes down where it comes by.
    struct Order(Vec<HookPoint>);
    impl Hook for Order {
        fn visit(&mut self, point: HookPoint, _: &Tensor, _: &Rows) -> Result<Option<Tensor>> {
            self.0.push(point);
            Ok(None)
        }
    }
    let fixture = Fixture::open("one_group");
    let mut order = Order(Vec::new());
    let hooked = fixture.model.forward(&Batch::new([[1, 2]]).unwrap(), None, Some(&mut order), Logits::All).unwrap();
    let points = fixture.model.config().points();
    let blocks = (0..fixture.layers()).flat_map(|i| points.iter().map(move |p| HookPoint::Block(i, *p)));
    assert_eq!(order.0, std::iter::once(HookPoint::Embed).chain(blocks).collect::<Vec<_>>());
    let plain = fixture.logits(&[vec![1, 2]]);
    assert_eq!(hooked.unwrap().to_vec2::<f32>().unwrap(), plain.to_vec2::<f32>().unwrap(), "looking changes nothing");
}

#[test]
fn rows_do_not_see_each_other() {
    for name in NAMES {
        let fixture = Fixture::open(name);
        let together = fixture.logits(&fixture.rows);
        let alone: Vec<Tensor> = fixture.rows.iter().map(|row| fixture.logits(std::slice::from_ref(row))).collect();
        // Products of other sizes are summed in another order.
        let error = error(&together, &Tensor::cat(&alone, 0).unwrap());
        assert!(error < 5e-6, "{name}: {error:e}");
    }
}

#[test]
fn token_by_token_and_piece_by_piece_give_the_same() {
    for name in NAMES {
        let fixture = Fixture::open(name);
        let row = &fixture.rows[0];
        let whole = fixture.logits(std::slice::from_ref(row));
        for pieces in [vec![1; row.len()], vec![2, 1, 5, row.len() - 8]] {
            let mut cache = fixture.model.cache(1).unwrap();
            let (mut from, mut parts) = (0, Vec::new());
            for piece in pieces {
                let batch = Batch::new([&row[from..from + piece]]).unwrap();
                parts.push(fixture.model.forward(&batch, Some(&mut cache), None, Logits::All).unwrap().unwrap());
                from += piece;
            }
            assert!(error(&Tensor::cat(&parts, 0).unwrap(), &whole) < 1e-5, "{name}");
        }
    }
}

/// What greedy decoding gives when everything is computed anew for every token.
fn slowly(fixture: &Fixture, row: &[u32], tokens: usize) -> Vec<u32> {
    let mut row = row.to_vec();
    let begin = row.len();
    for _ in 0..tokens {
        let logits = fixture.logits(std::slice::from_ref(&row));
        row.push(logits.get(row.len() - 1).unwrap().argmax(0).unwrap().to_scalar().unwrap());
    }
    row.split_off(begin)
}

#[test]
fn generated_rows_leave_and_branch_with_their_own_state() {
    let fixture = Fixture::open("two_groups");
    // Rows end after 3, 4, 5, … tokens, so that the others must find their states again.
    let answers = generate(&fixture.model, &fixture.batch(), 12, |row, tokens| tokens.len() >= 3 + row, None).unwrap();
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer, &slowly(&fixture, &fixture.rows[i], 3 + i), "row {i}");
    }

    let mut cache = fixture.model.cache(fixture.rows.len()).unwrap();
    fixture.model.forward(&fixture.batch(), Some(&mut cache), None, Logits::None).unwrap();
    let parents = [3, 0, 3];
    let mut branched = cache.branch(&parents).unwrap();
    let more = [vec![1, 2, 3], vec![4], vec![5, 6]];
    let batch = Batch::new(&more).unwrap();
    let ours = fixture.model.forward(&batch, Some(&mut branched), None, Logits::Last).unwrap().unwrap();
    for (i, (parent, more)) in parents.iter().zip(&more).enumerate() {
        let row = [fixture.rows[*parent].clone(), more.clone()].concat();
        let whole = fixture.logits(std::slice::from_ref(&row)).get(row.len() - 1).unwrap();
        assert!(error(&ours.get(i).unwrap(), &whole) < 1e-5, "branch {i}");
    }
    let refused = branched.truncate(0, 17).unwrap_err().to_string();
    assert!(refused.contains("no way back"), "{refused}");
    branched.truncate(0, 19).unwrap();
}

/// Gives the rows of a batch other states.
struct Exchange<'a>(&'a [Tensor]);

impl Hook for Exchange<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        matches!(point, HookPoint::Block(_, BlockPoint::State))
    }

    fn visit(&mut self, point: HookPoint, _: &Tensor, rows: &Rows) -> Result<Option<Tensor>> {
        let HookPoint::Block(block, _) = point else { return Ok(None) };
        assert_eq!(rows.len(), 1);
        Ok((rows.iter().next().unwrap().index == 0).then(|| self.0[block].clone()))
    }
}

#[test]
fn a_row_goes_on_with_the_state_it_is_given() {
    let fixture = Fixture::open("one_group");
    let points: Vec<HookPoint> = (0..fixture.layers()).map(state).collect();
    let donor = &fixture.rows[4];
    let mut capture = Capture::new(points.clone(), Tokens::last());
    let mut cache = fixture.model.cache(1).unwrap();
    fixture.model.forward(&Batch::new([donor]).unwrap(), Some(&mut cache), Some(&mut capture), Logits::None).unwrap();
    let states: Vec<Tensor> = points.iter().map(|p| capture.visits(*p)[0].clone()).collect();

    let next = Batch::new([[7u32], [7]]).unwrap();
    let mut cache = fixture.model.cache(2).unwrap();
    let rows = Batch::new([donor, donor]).unwrap();
    let nothing: Vec<Tensor> = states.iter().map(|s| s.zeros_like().unwrap()).collect();
    fixture.model.forward(&rows, Some(&mut cache), Some(&mut Exchange(&nothing)), Logits::None).unwrap();
    let emptied = fixture.model.forward(&next, Some(&mut cache), None, Logits::Last).unwrap().unwrap();
    assert!(
        error(&emptied.get(0).unwrap(), &emptied.get(1).unwrap()) > 1e-2,
        "row 0 has lost its state, row 1 has not"
    );
    // The same by edits of what the last token leaves; one of an earlier token, which leaves no state, does nothing.
    let emptied_by = |position: usize| {
        let edit = |point: &HookPoint| Edit::new(*point, Tokens::at([position]).in_rows([0]), Change::Zero);
        let mut edits: Vec<Edit> = points.iter().map(edit).collect();
        let mut chain = Chain(edits.iter_mut().map(|edit| edit as &mut dyn Hook).collect());
        let mut cache = fixture.model.cache(2).unwrap();
        fixture.model.forward(&rows, Some(&mut cache), Some(&mut chain), Logits::None).unwrap();
        fixture.model.forward(&next, Some(&mut cache), None, Logits::Last).unwrap().unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(emptied_by(donor.len() - 1), emptied.to_vec2::<f32>().unwrap());
    let [first, second] = <[_; 2]>::try_from(emptied_by(donor.len() - 2)).unwrap();
    assert_eq!(first, second);

    let mut cache = fixture.model.cache(2).unwrap();
    fixture.model.forward(&rows, Some(&mut cache), Some(&mut Exchange(&states)), Logits::None).unwrap();
    let given = fixture.model.forward(&next, Some(&mut cache), None, Logits::Last).unwrap().unwrap();
    let (ours, theirs) = (given.get(0).unwrap(), given.get(1).unwrap());
    assert_eq!(ours.to_vec1::<f32>().unwrap(), theirs.to_vec1::<f32>().unwrap(), "its own state in place of its own");
}

#[test]
fn checkpoints_of_the_authors_are_read() {
    let source = common::fixture("mamba2/one_group");
    let folder = common::Folder::new();
    let config = serde_json::json!({
        "d_model": 12, "n_layer": 3, "vocab_size": 41, "pad_vocab_size_multiple": 50, "tie_embeddings": true,
        "rms_norm": true, "residual_in_fp32": true, "attn_layer_idx": [],
        "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 4},
    });
    let path = folder.put("config.json", config.to_string().as_bytes());
    let tensors = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let renamed: HashMap<String, Tensor> =
        tensors.into_iter().map(|(name, t)| (name.replace("embeddings.", "embedding."), t)).collect();
    assert!(renamed.contains_key("backbone.embedding.weight"));
    candle_core::safetensors::save(&renamed, path.with_file_name("model.safetensors")).unwrap();
    let files = Files::find(path.parent().unwrap().to_str().unwrap(), None).unwrap();
    let fixture = Fixture::open("one_group");
    let theirs = Fixture { model: files.load(DType::F32, &[Room::cpu()]).unwrap(), ..Fixture::open("one_group") };
    let row = &fixture.rows[..1];
    assert_eq!(fixture.logits(row).to_vec2::<f32>().unwrap(), theirs.logits(row).to_vec2::<f32>().unwrap());
}
