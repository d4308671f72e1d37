//! Hidden states of a model on a machine, and which of them lie near each other, as one program: forward through the model,
//! in parts where memory asks for it, gather, find neighbours.
//!
//! Nothing goes on to the host but the neighbours, so that what a checkpoint says costs little beside its training.

use super::{
    Result,
    block::{Space, embed},
    failed,
    layout::{Layout, Slot},
    writer::Writer,
};
use crate::{
    engine::flat,
    model::{Parameters, Sizes, Transformer},
};
use std::ops::Range;
use taskvec_kernels::{
    Precision,
    cuda::{
        analysis::Points,
        attention::Attention,
        layers,
        program::{Cost, Loaded, Machine, Program, Region},
        training,
    },
};

/// Where a set of states is taken: one of every sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Blocks passed: 0 is what enters the first.
    pub layer: usize,
    /// Index in its sequence.
    pub token: usize,
}

/// Sequences that go through the model once, for all that is wanted of them.
pub struct Reading {
    /// (n, T, C), one sequence after the other.
    pub tokens: Vec<f32>,
    pub places: Vec<Place>,
}

/// What readings have in common.
#[derive(Clone, Copy, Debug)]
pub struct Readings {
    /// Of each, n: at least 2 and at most [`Points::MOST`].
    pub sequences: usize,
    /// Neighbours wanted of every state; all others where there are fewer.
    pub nearest: usize,
    /// Bytes that activations may take: where all sequences need more, they go through the model in parts.
    pub memory: usize,
}

/// States and their neighbours in the memory of a machine. The sets of all readings follow each other.
pub struct States<L> {
    loaded: L,
    places: Regions,
    points: Points,
    nearest: usize,
}

/// What the host writes and reads.
struct Regions {
    /// As [`Layout`] has them.
    parameters: Region,
    /// Of each reading, its parts: which sequences, and their tokens.
    tokens: Vec<Vec<(Range<usize>, Region)>>,
    /// (sets, n, d).
    states: Region,
    /// Partial sums of their squares, of f64: not finite where a state is not, for the square of any f32 is far from the
    /// largest f64.
    squares: Region,
    /// (sets, n, nearest) of u32.
    neighbours: Region,
}

impl<L: Loaded<Error: std::error::Error + Send + Sync + 'static>> States<L> {
    /// Computes the states of all places of all readings, and their neighbours. Tokens are those of the model's shape.
    ///
    /// # Errors
    /// Tensors that are not f32 on the CPU, and the machine's.
    ///
    /// # Panics
    /// No place at all, too few sequences or too many, tokens of another shape, or a place that the model does not have.
    pub fn of<M: Machine<Loaded = L, Error = L::Error>>(
        machine: &M,
        network: &Transformer,
        readings: &[Reading],
        common: Readings,
    ) -> Result<Self> {
        let sizes = network.sizes();
        let (layout, slots) = Layout::new(sizes);
        let wanted: Vec<&[Place]> = readings.iter().map(|reading| reading.places.as_slice()).collect();
        let task = Task::new(sizes, &wanted, common, machine.shared());
        let (program, places) = task.program(&layout, &slots);
        let (points, nearest) = (task.points(), task.nearest);
        let mut states = Self { loaded: machine.load(program).map_err(failed)?, places, points, nearest };
        let parameters = flat(network.parameters().iter().map(|(_, t)| t))?;
        let mut writes = vec![(states.places.parameters, layout.spread(&parameters))];
        let each = sizes.positions * sizes.channels;
        for (reading, parts) in readings.iter().zip(&states.places.tokens) {
            assert_eq!(reading.tokens.len(), common.sequences * each, "tokens of {} sequences", common.sequences);
            let part = |(of, place): &(Range<usize>, Region)| {
                (*place, reading.tokens[of.start * each..of.end * each].to_vec())
            };
            writes.extend(parts.iter().map(part));
        }
        for (place, values) in writes {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            states.loaded.write(place, &bytes).map_err(failed)?;
        }
        states.loaded.run(1).map_err(failed)?;
        Ok(states)
    }

    /// Is every state a finite number?
    ///
    /// # Errors
    /// The machine's.
    pub fn finite(&self) -> Result<bool> {
        let bytes = self.loaded.read(self.places.squares).map_err(failed)?;
        Ok(bytes.as_chunks().0.iter().all(|b| f64::from_le_bytes(*b).is_finite()))
    }

    /// Of each set, the nearest others of every state, nearest first, by the rules of [`crate::analysis::knn`].
    ///
    /// # Errors
    /// The machine's.
    pub fn neighbours(&self) -> Result<Vec<Vec<Vec<u32>>>> {
        let bytes = self.loaded.read(self.places.neighbours).map_err(failed)?;
        let indices: Vec<u32> = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let of_set = |set: &[u32]| set.chunks_exact(self.nearest).map(<[u32]>::to_vec).collect();
        Ok(indices.chunks_exact(self.points.points * self.nearest).map(of_set).collect())
    }

    /// The states themselves: of each set n × d values.
    ///
    /// # Errors
    /// The machine's.
    pub fn values(&self) -> Result<Vec<Vec<f32>>> {
        let bytes = self.loaded.read(self.places.states).map_err(failed)?;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok(values.chunks_exact(self.points.points * self.points.dim).map(<[f32]>::to_vec).collect())
    }
}

/// What it takes to read a model at these places, those of each reading, without a machine; `shared` is what a block of it
/// may have.
///
/// # Panics
/// As [`States::of`].
pub fn cost(sizes: Sizes, wanted: &[&[Place]], common: Readings, shared: usize) -> Cost {
    let (layout, slots) = Layout::new(sizes);
    Task::new(sizes, wanted, common, shared).program(&layout, &slots).0.cost()
}

/// A program to be made.
struct Task<'a> {
    sizes: Sizes,
    wanted: &'a [&'a [Place]],
    sequences: usize,
    /// Sequences of a part.
    part: usize,
    nearest: usize,
    /// Bytes of shared memory that a block may have.
    shared: usize,
}

/// Where a part's activations are, used again by every part and block.
struct Room {
    space: Space,
    attention: Attention,
}

impl<'a> Task<'a> {
    fn new(sizes: Sizes, wanted: &'a [&'a [Place]], common: Readings, shared: usize) -> Self {
        let Readings { sequences, nearest, memory } = common;
        assert!((2..=Points::MOST).contains(&sequences), "neighbours of {sequences} states");
        let fits = |place: &Place| place.layer <= sizes.layers && place.token < sizes.positions;
        assert!(wanted.concat().iter().all(fits), "{wanted:?} of a model of {sizes:?}");
        // Residual stream, norm and what is read twice, query, key and value, the activations between.
        let each = 12 * sizes.width * sizes.positions * size_of::<f32>();
        let parts = sequences.div_ceil((memory / each).max(1));
        let (part, nearest) = (sequences.div_ceil(parts), nearest.clamp(1, sequences - 1));
        Self { sizes, wanted, sequences, part, nearest, shared }
    }

    fn points(&self) -> Points {
        let sets = self.wanted.iter().map(|places| places.len()).sum();
        Points { sets, points: self.sequences, dim: self.sizes.width }
    }

    /// Parts of one size, so that the same sequence has the same bytes in each: the last has some of the one before it.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = (0..self.sequences).step_by(self.part).map(|start| start.min(self.sequences - self.part));
        starts.map(|start| start..start + self.part)
    }

    fn program(&self, layout: &Layout, slots: &Parameters<Slot>) -> (Program, Regions) {
        let mut writer = Writer::forward_only(layout, Precision::F32);
        let points = self.points();
        let values = points.sets * points.points * points.dim;
        let states = writer.builder.floats(values);
        let neighbours = writer.builder.bytes(points.sets * points.points * self.nearest * size_of::<u32>());
        let squares = writer.builder.bytes(training::parts(values) * size_of::<f64>());
        let room = self.room(&mut writer);
        let (mut tokens, mut sets) = (Vec::new(), 0);
        for places in self.wanted {
            let mut parts = Vec::new();
            for of in self.parts() {
                let part = writer.room(self.part * self.sizes.positions, self.sizes.channels);
                let out = |set: usize| states.behind(((sets + set) * points.points + of.start) * points.dim);
                self.forward(&mut writer, (slots, &room), part, places, out);
                parts.push((of, part));
            }
            tokens.push(parts);
            sets += places.len();
        }
        writer.launch(training::squares(1, values, [states, squares]));
        writer.launch(points.neighbours(self.nearest, [states, neighbours]));
        let parameters = writer.parameters;
        (writer.builder.finish(), Regions { parameters, tokens, states, squares, neighbours })
    }

    fn room(&self, writer: &mut Writer) -> Room {
        let (d, tokens) = (self.sizes.width, self.sizes.positions);
        let rows = self.part * tokens;
        let [x, normed, qkv, read, mid, hidden] = [d, d, 3 * d, d, d, 4 * d].map(|width| writer.room(rows, width));
        let normed_mid = writer.room(rows, d);
        let space = Space { rows: [rows, rows], x, normed, qkv, read, mid, normed_mid, hidden, at_x: None };
        let attention =
            Attention { sequences: self.part, tokens, width: d, heads: self.sizes.heads, shared: self.shared };
        Room { space, attention }
    }

    /// A part's way through the model, as far as a place asks for it. `out` says where a place's states go.
    fn forward(
        &self,
        writer: &mut Writer,
        (slots, room): (&Parameters<Slot>, &Room),
        tokens: Region,
        places: &[Place],
        out: impl Fn(usize) -> Region,
    ) {
        let (stream, d) = (room.space.x, self.sizes.width);
        let take = |writer: &mut Writer, layer: usize| {
            for (set, place) in places.iter().enumerate().filter(|(_, place)| place.layer == layer) {
                let at = (place.token, self.sizes.positions);
                writer.launch(layers::gather_every(self.part, d, at, [stream, out(set)]));
            }
        };
        let deepest = places.iter().map(|place| place.layer).max().unwrap_or(0);
        embed(writer, slots, (self.sizes, room.space.rows[0]), [tokens, stream]);
        take(writer, 0);
        for (block, layer) in slots.blocks[..deepest].iter().zip(1..) {
            room.space.forward(writer, block, room.attention, None, stream);
            take(writer, layer);
        }
    }
}
