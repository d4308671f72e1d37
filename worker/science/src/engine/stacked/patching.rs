//! Activation patching of a model on a machine, as one program: the means of each latent task at every layer, the sequences of
//! each source as they are, and from each layer on all its targets at once.

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
use std::collections::{BTreeMap, BTreeSet};
use taskvec_kernels::{
    Precision,
    cuda::{
        Extent, Operand, Product,
        analysis::Patch,
        attention::Attention,
        layers,
        program::{Loaded, Machine, Program, Region},
    },
};

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
    baselines: BTreeMap<usize, Region>,
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

/// Bytes of all activations of a program, nearly.
pub fn memory(sizes: Sizes, of: &Patching<'_>) -> usize {
    let (most, _) = widest(of);
    let streams = most + of.sequences * (of.tasks + 12 * of.tasks.max(most.div_ceil(of.sequences)));
    streams * sizes.positions * sizes.width * size_of::<f32>()
}

/// Sequences of the source with the most targets, and of all that goes through the model at a time.
fn widest(of: &Patching<'_>) -> (usize, usize) {
    let targets = |source: usize| of.pairs.iter().filter(|[s, _]| *s == source).count();
    let most = of.sequences * (0..of.tasks).map(targets).max().unwrap_or(0);
    (most, most.max(of.sequences * of.tasks))
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
    /// Room that every block uses again, but for its stream.
    space: Space,
    /// Rows of x positions.
    at_x: Region,
    /// The residual streams of sequences as they are, and patched.
    streams: [Region; 2],
    /// Of each layer, what states are moved by, (tasks, T, d).
    moves: Vec<Region>,
}

impl<'a> Task<'a> {
    fn new(slots: &'a Parameters<Slot>, (sizes, shared): (Sizes, usize), of: Patching<'a>, layout: &Layout) -> Self {
        assert!(of.layers.iter().all(|&layer| layer <= sizes.layers), "{of:?} of a model of {sizes:?}");
        assert!(of.pairs.as_flattened().iter().all(|&task| task < of.tasks), "{of:?} names a task that is none");
        let mut writer = Writer::forward_only(layout, Precision::F32);
        let (d, each, (most, widest)) = (sizes.width, sizes.positions, widest(&of));
        let rows = widest * each;
        let streams = [of.sequences * of.tasks, most].map(|sequences| writer.room(sequences * each, d));
        let [normed, qkv, read, mid, normed_mid, hidden] =
            [d, 3 * d, d, d, d, 4 * d].map(|width| writer.room(rows, width));
        let space = Space { rows: [rows, rows], x: streams[0], normed, qkv, read, mid, normed_mid, hidden, at_x: None };
        let at_x = writer.room(rows / 2, d);
        let moves = of.layers.iter().map(|_| writer.room(of.tasks * each, d)).collect();
        Self { of, sizes, slots, shared, writer, space, at_x, streams, moves }
    }

    fn program(mut self) -> (Program, Places) {
        let (n, tasks, positions) = (self.of.sequences, self.of.tasks, self.sizes.positions);
        let weights = self.writer.room(tasks, tasks * n);
        let tokens = self.writer.room(tasks * n * positions, self.sizes.channels);
        self.means(tokens, weights);
        let named: BTreeSet<usize> = self.of.pairs.iter().map(|[source, _]| *source).collect();
        let (mut sources, mut baselines) = (BTreeMap::new(), BTreeMap::new());
        let mut patched: Vec<BTreeMap<usize, Region>> = vec![BTreeMap::new(); self.of.layers.len()];
        for source in named {
            let tokens = self.writer.room(n * positions, self.sizes.channels);
            let (baseline, of_layers) = self.source(source, tokens);
            baselines.insert(source, baseline);
            for (of_sources, place) in patched.iter_mut().zip(of_layers) {
                of_sources.insert(source, place);
            }
            sources.insert(source, tokens);
        }
        let patched = patched.iter().map(|of_layer| self.of_pairs(of_layer)).collect();
        let parameters = self.writer.parameters;
        (self.writer.builder.finish(), Places { parameters, weights, tokens, sources, baselines, patched })
    }

    /// Where each pair's predictions are, among those of its source.
    fn of_pairs(&self, of_sources: &BTreeMap<usize, Region>) -> Vec<Region> {
        let (len, mut seen) = (self.of.sequences * self.sizes.positions / 2, BTreeMap::<usize, usize>::new());
        let place = |[source, _]: &[usize; 2]| {
            let before = seen.entry(*source).or_default();
            *before += 1;
            of_sources[source].behind((*before - 1) * len).first(len)
        };
        self.of.pairs.iter().map(place).collect()
    }

    /// What states are moved by at every layer and token.
    fn means(&mut self, tokens: Region, weights: Region) {
        let (n, tasks, stream) = (self.of.sequences, self.of.tasks, self.streams[0]);
        let width = self.sizes.positions * self.sizes.width;
        let of = Extent { m: tasks, n: width, k: tasks * n, runs: 1, precision: Precision::F32 };
        self.embed(tasks * n, tokens);
        for layer in 0..=self.deepest() {
            if let Some(block) = layer.checked_sub(1) {
                self.block(block, tasks * n, stream);
            }
            for (_, moves) in self.of.layers.iter().zip(&self.moves).filter(|(l, _)| **l == layer) {
                let factors = [Operand::plain(weights, 0), Operand::plain(stream, 0)];
                self.writer.builder.multiply(Product::new(of, factors, (*moves, 0)));
            }
        }
    }

    /// Where the predictions of a source are: as it is, and of each layer for all its targets.
    fn source(&mut self, source: usize, tokens: Region) -> (Region, Vec<Region>) {
        let (n, stream, of) = (self.of.sequences, self.streams[0], self.of);
        let targets: Vec<usize> = of.pairs.iter().filter(|[s, _]| *s == source).map(|[_, target]| *target).collect();
        let len = self.sizes.positions / 2;
        let baseline = self.writer.room(n * len, 1);
        let patched: Vec<Region> = of.layers.iter().map(|_| self.writer.room(targets.len() * n * len, 1)).collect();
        self.embed(n, tokens);
        for layer in 0..=self.sizes.layers {
            if let Some(block) = layer.checked_sub(1) {
                self.block(block, n, stream);
            }
            for i in (0..of.layers.len()).filter(|&i| of.layers[i] == layer) {
                self.branch(i, &targets, patched[i]);
            }
        }
        self.predict(n, stream, baseline);
        (baseline, patched)
    }

    /// From a layer on, for all targets.
    fn branch(&mut self, i: usize, targets: &[usize], out: Region) {
        let [from, stream] = self.streams;
        let (of, Sizes { positions: tokens, width, layers, .. }) = (self.of, self.sizes);
        let (first, count) = of.tokens;
        for (j, target) in targets.iter().enumerate() {
            let patch = Patch { sequences: of.sequences, tokens, width, first, count, add: of.add };
            let moves = self.moves[i].behind(target * tokens * width);
            let to = stream.behind(j * of.sequences * tokens * width);
            self.writer.launch(patch.call([from, moves, to]));
        }
        let sequences = targets.len() * of.sequences;
        (of.layers[i]..layers).for_each(|block| self.block(block, sequences, stream));
        self.predict(sequences, stream, out);
    }

    fn deepest(&self) -> usize {
        self.of.layers.iter().copied().max().unwrap_or(0)
    }

    fn embed(&mut self, sequences: usize, tokens: Region) {
        let rows = sequences * self.sizes.positions;
        embed(&mut self.writer, self.slots, (self.sizes, rows), [tokens, self.streams[0]]);
    }

    fn block(&mut self, i: usize, sequences: usize, stream: Region) {
        let Sizes { positions: tokens, width, heads, .. } = self.sizes;
        let attention = Attention { sequences, tokens, width, heads, shared: self.shared };
        let rows = sequences * tokens;
        let block: &Block<Slot> = &self.slots.blocks[i];
        let space = Space { rows: [rows, rows], x: stream, ..self.space };
        space.forward(&mut self.writer, block, attention, None, stream);
    }

    /// From what leaves the last block to predictions.
    fn predict(&mut self, sequences: usize, stream: Region, out: Region) {
        let (rows, d, p, normed) =
            (sequences * self.sizes.positions / 2, self.sizes.width, self.slots, self.space.normed);
        let w = &mut self.writer;
        w.launch(layers::gather_even(rows, d, [stream, self.at_x]));
        w.norm(rows, d, &p.ln_f, self.at_x, normed);
        w.linear(Map { rows, inputs: d, outputs: 1 }, (p.read_out.weight, Weights::OutIn), normed, out);
        w.add([rows, 1], p.read_out.bias, out, None);
    }
}
