//! Activation patching of a model on a machine, as one program: in one pass the means of each latent task at every layer and
//! the sequences of all sources as they are, and from each patched layer on all pairs of source and target at once.
//!
//! The sequences of a task, and those of a pair, are a run to the machine, and all runs have the same parameters. So a
//! prediction has the same bytes whatever else is computed beside it, and memory may be spared: where all of them take more
//! than they may, they go through a block in parts.

use super::{
    Result,
    block::{Space, embed},
    failed,
    layout::{Layout, Slot},
    writer::{Map, Weights, Writer},
};
use crate::{
    engine::flat,
    model::{Block, Parameters, Sizes, Transformer},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};
use taskvec_kernels::{
    Precision,
    cuda::{
        Extent, Operand, Product,
        analysis::Patch,
        attention::Attention,
        layers,
        program::{Cost, Loaded, Machine, Program, Region},
    },
};

/// Tasks or pairs side by side, at most: a launch has no more.
const MOST: usize = (1 << 16) - 1;

/// What is to be patched, where and with what.
#[derive(Clone, Copy, Debug)]
pub struct Patching<'a> {
    /// Of each latent task, for its mean and again as a source: n, at least 1.
    pub sequences: usize,
    /// Latent tasks, at least 1.
    pub tasks: usize,
    /// Blocks passed where states are patched, at most all.
    pub layers: &'a [usize],
    /// The first of the patched tokens and how many there are: it and every other from there on.
    pub tokens: (usize, usize),
    /// Are states moved by the difference of the target's mean to the mean of all, instead of replaced by the target's?
    pub add: bool,
    /// Source and target.
    pub pairs: &'a [[usize; 2]],
    /// Bytes that activations may take: where all need more, parts as large as fit go through a block one after the other,
    /// and in the end one task or pair at a time, whatever that takes ([`least_memory`]).
    pub memory: usize,
}

/// What the model predicts at the x positions of the source's sequences, (n, K).
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// As they are, by source.
    pub baselines: BTreeMap<usize, Vec<f32>>,
    /// Of each layer, each pair.
    pub patched: Vec<Vec<Vec<f32>>>,
}

/// A model in the memory of a machine, to be patched again and again.
pub struct Patched<L> {
    loaded: L,
    places: Places,
}

/// What the host writes and reads.
struct Places {
    parameters: Region,
    /// Of the targets among the sequences of all tasks: (tasks, tasks · n).
    weights: Region,
    /// Those whose means are taken, (tasks · n, T, C).
    tokens: Region,
    /// By source, (n, T, C).
    sources: BTreeMap<usize, Region>,
    /// By source.
    baselines: BTreeMap<usize, Region>,
    /// Of each layer, each pair.
    patched: Vec<Vec<Region>>,
}

impl<L: Loaded<Error: std::error::Error + Send + Sync + 'static>> Patched<L> {
    /// # Errors
    /// Tensors that are not f32 on the CPU, and the machine's.
    ///
    /// # Panics
    /// Where the model has no such layer or token, or a pair names a task that is none.
    pub fn new<M: Machine<Loaded = L, Error = L::Error>>(
        machine: &M,
        network: &Transformer,
        of: Patching<'_>,
    ) -> Result<Self> {
        let (layout, slots) = Layout::new(network.sizes());
        let (program, places) = Task::new(&slots, (network.sizes(), machine.shared()), of, &layout).program();
        let mut patched = Self { loaded: machine.load(program).map_err(failed)?, places };
        let parameters = flat(network.parameters().iter().map(|(_, t)| t))?;
        patched.write(patched.places.parameters, &layout.spread(&parameters))?;
        patched.write(patched.places.weights, &weights(&of))?;
        Ok(patched)
    }

    /// `means` are the tokens of n sequences of each task, one task after the other, and `sources` those of the sources.
    ///
    /// # Errors
    /// The machine's, also where tokens are of another length.
    pub fn run(&mut self, means: &[f32], sources: &BTreeMap<usize, Vec<f32>>) -> Result<Predicted> {
        self.write(self.places.tokens, means)?;
        for (source, place) in self.places.sources.clone() {
            self.write(place, sources.get(&source).map_or(&[], Vec::as_slice))?;
        }
        self.loaded.run(1).map_err(failed)?;
        let all = |places: &Vec<Region>| places.iter().map(|place| self.read(*place)).collect();
        let baselines = self.places.baselines.iter().map(|(source, place)| Ok((*source, self.read(*place)?)));
        let patched = self.places.patched.iter().map(all).collect::<Result<_>>()?;
        Ok(Predicted { baselines: baselines.collect::<Result<_>>()?, patched })
    }

    fn write(&mut self, place: Region, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.loaded.write(place, &bytes).map_err(failed)
    }

    fn read(&self, place: Region) -> Result<Vec<f32>> {
        let bytes = self.loaded.read(place).map_err(failed)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

/// Bytes that all activations take at least, nearly: where tasks and pairs go through blocks one at a time.
pub fn least_memory(sizes: Sizes, of: &Patching<'_>) -> usize {
    let [kept, each] = memory(sizes, of);
    kept + each
}

/// Bytes of what is kept all the while, and of what a task or a pair takes on its way through a block.
fn memory(sizes: Sizes, of: &Patching<'_>) -> [usize; 2] {
    let (tokens, d) = (of.sequences * sizes.positions, sizes.width);
    let (all, pairs, layers) = (of.tasks + sources(of).len(), of.pairs.len(), of.layers.len());
    // Residual streams and tokens, predictions, what states are moved by.
    let kept = all * tokens * (d + sizes.channels)
        + (layers * pairs + all) * tokens / 2
        + of.tasks * (layers * sizes.positions * d + of.tasks * of.sequences);
    // The patched stream, norm and what is read twice, query, key and value, the activations between, and rows of x.
    let each = tokens * (12 * d + d / 2);
    [kept, each].map(|floats| floats * size_of::<f32>())
}

/// What it takes to patch a model, without a machine; `shared` is what a block of it may have.
///
/// # Panics
/// As [`Patched::new`].
pub fn cost(sizes: Sizes, of: Patching<'_>, shared: usize) -> Cost {
    let (layout, slots) = Layout::new(sizes);
    Task::new(&slots, (sizes, shared), of, &layout).program().0.cost()
}

/// Each once, ascending.
fn sources(of: &Patching<'_>) -> Vec<usize> {
    let named: BTreeSet<usize> = of.pairs.iter().map(|[source, _]| *source).collect();
    named.into_iter().collect()
}

/// What every sequence has in the mean, or in the difference of means, of each target.
fn weights(of: &Patching<'_>) -> Vec<f32> {
    let (n, tasks) = (of.sequences as f64, of.tasks as f64);
    let all = if of.add { 1.0 / (n * tasks) } else { 0.0 };
    let weight = |target: usize, task: usize| if target == task { 1.0 / n - all } else { -all };
    let row = |target| (0..of.tasks).flat_map(move |task| vec![weight(target, task) as f32; of.sequences]);
    (0..of.tasks).flat_map(row).collect()
}

/// A program to be made.
struct Task<'a> {
    of: Patching<'a>,
    sizes: Sizes,
    slots: &'a Parameters<Slot>,
    /// Bytes of shared memory that a block may have.
    shared: usize,
    writer: Writer,
    sources: Vec<usize>,
    /// Tasks or pairs that go through a block at a time, at most.
    part: usize,
    /// Room that every block uses again, but for its stream.
    space: Space,
    /// Rows of x positions.
    at_x: Region,
    /// The residual streams of all tasks' sequences and then all sources', and of a part of the pairs.
    streams: [Region; 2],
    /// Of each layer, what states are moved by, (tasks, T, d).
    moves: Vec<Region>,
}

impl<'a> Task<'a> {
    fn new(slots: &'a Parameters<Slot>, (sizes, shared): (Sizes, usize), of: Patching<'a>, layout: &Layout) -> Self {
        assert!(of.layers.iter().all(|&layer| layer <= sizes.layers), "{of:?} of a model of {sizes:?}");
        assert!(of.pairs.as_flattened().iter().all(|&task| task < of.tasks), "{of:?} names a task that is none");
        let mut writer = Writer::forward_only(layout, Precision::F32);
        let (sources, [kept, each]) = (sources(&of), memory(sizes, &of));
        let (all, pairs) = (of.tasks + sources.len(), of.pairs.len());
        let part = (of.memory.saturating_sub(kept) / each.max(1)).clamp(1, all.max(pairs).min(MOST));
        let (d, rows) = (sizes.width, of.sequences * sizes.positions);
        let streams = [all, part.min(pairs)].map(|runs| writer.builder.floats(runs * rows * d));
        let mut room = |width: usize| writer.builder.floats(part * rows * width);
        let [normed, qkv, read, mid, normed_mid, hidden] = [d, 3 * d, d, d, d, 4 * d].map(&mut room);
        let space = Space { rows: [rows, rows], x: streams[0], normed, qkv, read, mid, normed_mid, hidden, at_x: None };
        let at_x = writer.builder.floats(part * rows / 2 * d);
        let moves = of.layers.iter().map(|_| writer.builder.floats(of.tasks * sizes.positions * d)).collect();
        Self { of, sizes, slots, shared, writer, sources, part, space, at_x, streams, moves }
    }

    fn program(mut self) -> (Program, Places) {
        let (of, stream, Sizes { layers, channels, .. }) = (self.of, self.streams[0], self.sizes);
        let (tasks, all, len) = (of.tasks, of.tasks + self.sources.len(), self.rows() / 2);
        let weights = self.writer.builder.floats(tasks * tasks * of.sequences);
        let tokens = self.writer.builder.floats(all * self.rows() * channels);
        let baselines = self.writer.builder.floats(self.sources.len() * len);
        let patched: Vec<_> = of.layers.iter().map(|_| self.writer.builder.floats(of.pairs.len() * len)).collect();
        self.in_parts(0..all, |task, part| task.embed(part, [tokens, stream]));
        let deepest = of.layers.iter().copied().max().unwrap_or(0);
        for layer in 0..=layers {
            // Of the deepest layer the last means are taken.
            let runs = if layer <= deepest { 0..all } else { tasks..all };
            if let Some(block) = layer.checked_sub(1) {
                self.in_parts(runs, |task, part| task.block(block, part, stream));
            }
            for i in (0..of.layers.len()).filter(|&i| of.layers[i] == layer) {
                self.means(weights, self.moves[i]);
                self.branch(i, patched[i]);
            }
        }
        let sources = stream.behind(tasks * self.rows() * self.sizes.width);
        self.in_parts(0..all - tasks, |task, part| task.predict(part, sources, baselines));
        let each = self.rows() * channels;
        let by_source = |place: Region, each: usize| {
            self.sources.iter().enumerate().map(|(i, source)| (*source, place.behind(i * each).first(each))).collect()
        };
        let (baselines, sources) = (by_source(baselines, len), by_source(tokens.behind(tasks * each), each));
        let of_pairs = |of_layer: &Region| (0..of.pairs.len()).map(|i| of_layer.behind(i * len).first(len)).collect();
        let patched = patched.iter().map(of_pairs).collect();
        let (parameters, tokens) = (self.writer.parameters, tokens.first(tasks * each));
        (self.writer.builder.finish(), Places { parameters, weights, tokens, sources, baselines, patched })
    }

    /// Tokens of a task or pair.
    fn rows(&self) -> usize {
        self.of.sequences * self.sizes.positions
    }

    fn in_parts(&mut self, runs: Range<usize>, mut write: impl FnMut(&mut Self, Range<usize>)) {
        for start in runs.clone().step_by(self.part) {
            let part = start..runs.end.min(start + self.part);
            self.writer.side_by_side(part.len());
            write(self, part);
        }
    }

    /// What states are moved by at every token of a layer, from the streams of all tasks.
    fn means(&mut self, weights: Region, moves: Region) {
        let (n, tasks, width) = (self.of.sequences, self.of.tasks, self.sizes.positions * self.sizes.width);
        let of = Extent { m: tasks, n: width, k: tasks * n, runs: 1, precision: Precision::F32 };
        let factors = [Operand::plain(weights, 0), Operand::plain(self.streams[0], 0)];
        self.writer.builder.multiply(Product::new(of, factors, (moves, 0)));
    }

    /// From a layer on, all pairs: what is predicted goes to `out`, one pair after the other.
    fn branch(&mut self, i: usize, out: Region) {
        let (of, stream) = (self.of, self.streams[1]);
        self.in_parts(0..of.pairs.len(), |task, part| {
            part.clone().enumerate().for_each(|(to, pair)| task.patch(i, of.pairs[pair], to));
            (of.layers[i]..task.sizes.layers).for_each(|block| task.block(block, 0..part.len(), stream));
            let len = task.rows() / 2;
            task.predict(0..part.len(), stream, out.behind(part.start * len));
        });
    }

    /// The stream of a pair, the `to`-th of a part, from that of its source after a layer.
    fn patch(&mut self, i: usize, [source, target]: [usize; 2], to: usize) {
        let (of, Sizes { positions: tokens, width, .. }) = (self.of, self.sizes);
        let (first, count) = of.tokens;
        let patch = Patch { sequences: of.sequences, tokens, width, first, count, add: of.add };
        let before = self.sources.partition_point(|&other| other < source);
        let each = self.rows() * width;
        let [all, patched] = self.streams;
        let moves = self.moves[i].behind(target * tokens * width);
        self.writer.launch(patch.call([all.behind((of.tasks + before) * each), moves, patched.behind(to * each)]));
    }

    fn embed(&mut self, part: Range<usize>, [tokens, stream]: [Region; 2]) {
        let (rows, Sizes { width, channels, .. }) = (self.rows(), self.sizes);
        let [tokens, stream] =
            [(tokens, channels), (stream, width)].map(|(at, each)| at.behind(part.start * rows * each));
        embed(&mut self.writer, self.slots, (self.sizes, rows), [tokens, stream]);
    }

    fn block(&mut self, i: usize, part: Range<usize>, stream: Region) {
        let Sizes { positions: tokens, width, heads, .. } = self.sizes;
        let attention =
            Attention { sequences: part.len() * self.of.sequences, tokens, width, heads, shared: self.shared };
        let block: &Block<Slot> = &self.slots.blocks[i];
        let x = stream.behind(part.start * self.rows() * width);
        let space = Space { x, ..self.space };
        space.forward(&mut self.writer, block, attention, None, x);
    }

    /// From what leaves the last block to predictions.
    fn predict(&mut self, part: Range<usize>, stream: Region, out: Region) {
        let (rows, d, p, normed) = (self.rows() / 2, self.sizes.width, self.slots, self.space.normed);
        let [stream, out] = [(stream, 2 * d), (out, 1)].map(|(at, each)| at.behind(part.start * rows * each));
        let w = &mut self.writer;
        w.launch(layers::gather_even(part.len() * rows, d, [stream, self.at_x]));
        w.norm(rows, d, &p.ln_f, self.at_x, normed);
        w.linear(Map { rows, inputs: d, outputs: 1 }, (p.read_out.weight, Weights::OutIn), normed, out);
        w.add([rows, 1], p.read_out.bias, out, None);
    }
}
