//! Launches of what surrounds the layers in a training step: data, loss, update.

use super::{Bytes, Call};
use crate::Adam;

/// Elements of one partial sum of squares (`SQUARES` of the sources).
const SQUARES: usize = 1 << 14;

/// Rings (S, slots) of what each run's host reads or sets, at the slot of an update `step % slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// S.
    pub runs: usize,
    pub slots: usize,
}

impl Rings {
    /// Slots of all runs.
    fn len(self) -> usize {
        assert!(self.slots > 0, "a ring has slots");
        self.runs.checked_mul(self.slots).expect("rings fit the address space")
    }

    /// Mean squared error of `predicted` (S, count) against `target`; the gradient may be `predicted` itself. The loss and
    /// that of predicting 0 go to `losses` (S, slots, 2) of f64 at the slot of `step` (S) of u64.
    pub fn mse<B: Bytes>(self, count: usize, [predicted, target, step, gradient, losses]: [B; 5]) -> Call<B> {
        let len = self.runs * count;
        Call::new("mse", [1, self.runs, 1])
            .floats(predicted, len)
            .floats(target, len)
            .int(count)
            .buffer::<u64>(step, self.runs)
            .int(self.slots)
            .floats(gradient, len)
            .buffer::<f64>(losses, self.len() * 2)
    }

    /// The factors of each run's update in `rates` (S × [`RATES`] bytes), from the partial sums of [`squares`]. `limits` (S)
    /// of f64 is what norms are clipped to, infinite where they are not. Counts `step` up.
    pub fn adam_rates<B: Bytes>(
        self,
        adam: Adam,
        count: usize,
        [partials, learning_rates, limits, step, norms, rates]: [B; 6],
    ) -> Call<B> {
        let (parts, ring) = (parts(count), self.len());
        Call::new("adam_rates", [1, self.runs, 1])
            .buffer::<f64>(partials, self.runs * parts)
            .int(parts)
            .buffer::<f64>(learning_rates, ring)
            .buffer::<f64>(limits, self.runs)
            .int(self.slots)
            .double(adam.beta1)
            .double(adam.beta2)
            .double(adam.epsilon)
            .double(adam.weight_decay)
            .buffer::<u64>(step, self.runs)
            .buffer::<f64>(norms, ring)
            .buffer::<u8>(rates, self.runs * RATES)
    }
}

/// Bytes of the factors of one run's update.
pub const RATES: usize = 9 * size_of::<f32>();

/// Partial sums of the squares of `count` elements.
pub fn parts(count: usize) -> usize {
    count.div_ceil(SQUARES)
}

/// Sums of squares of `grad` (S, count) in parts of 2¹⁴ elements, f64.
pub fn squares<B: Bytes>(runs: usize, count: usize, [grad, partials]: [B; 2]) -> Call<B> {
    let parts = parts(count);
    Call::new("squares", [parts, runs, 1]).floats(grad, runs * count).long(count).buffer::<f64>(partials, runs * parts)
}

/// One update of (S, count) parameters by the factors that `adam_rates` left. A run whose gradient is not finite stays as it
/// is.
pub fn adam<B: Bytes>(runs: usize, count: usize, [grad, rates, param, m, v]: [B; 5]) -> Call<B> {
    let len = runs * count;
    Call::each("adam", count, runs)
        .floats(grad, len)
        .buffer::<u8>(rates, runs * RATES)
        .long(count)
        .floats(param, len)
        .floats(m, len)
        .floats(v, len)
}

/// A run's mixture, as the device has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    pub seed: u64,
    pub weight_mean: f64,
    /// The noise's standard deviation.
    pub noise: f64,
    pub bases: u32,
    /// Where the coordinates of the first basis begin in the table of all runs.
    pub table: u32,
}

impl Mixture {
    pub const BYTES: usize = 32;

    pub fn bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.weight_mean.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.noise.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.bases.to_le_bytes());
        bytes[28..].copy_from_slice(&self.table.to_le_bytes());
        bytes
    }
}

/// How sequences come by their basis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bases {
    Drawn,
    /// All have this one.
    Fixed(u32),
    InTurn,
}

impl Bases {
    /// Can sequences of so many bases come by theirs like this?
    pub(super) fn suit(self, bases: usize) -> bool {
        match self {
            Self::Drawn | Self::InTurn => bases > 0,
            Self::Fixed(k) => (k as usize) < bases,
        }
    }
}

/// What the mixtures of all runs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixtureShape {
    pub dim: u32,
    /// Of a sequence, K.
    pub examples: u32,
    /// Of a token, C.
    pub channels: u32,
    /// Where y stands.
    pub y_channel: u32,
    /// Coordinates of a basis.
    pub rank: u32,
    /// What the numbers are for, as the generator counts it.
    pub purpose: u32,
    pub bases: Bases,
    /// Index of the first sequence.
    pub first: u32,
}

/// `sequences` of each run: `tokens` (S, B, 2K, C), `y` (S, B, K) and `basis` (S, B) of u32, from the mixtures of `runs`
/// (S × [`Mixture::BYTES`]), the updates `step` (S) of u64, and `coordinates` (`table` of them in all) of u32.
pub fn mixture<B: Bytes>(
    (runs, sequences, table): (usize, usize, usize),
    of: MixtureShape,
    [mixtures, step, coordinates, tokens, y, basis]: [B; 6],
) -> Call<B> {
    let (mode, fixed) = match of.bases {
        Bases::Drawn => (0, 0),
        Bases::Fixed(k) => (1, k),
        Bases::InTurn => (2, 0),
    };
    let words = [of.dim, of.examples, of.channels, of.y_channel, of.rank, of.purpose, mode, fixed, of.first];
    let shape: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let [examples, dim, rank, channels] = [of.examples, of.dim, of.rank, of.channels].map(|n| n as usize);
    let all = runs * sequences;
    Call::new("mixture", [sequences, runs, 1])
        .shared(examples * size_of::<f64>() + (examples * dim + rank) * size_of::<f32>())
        .guide(mixtures, runs * Mixture::BYTES)
        .buffer::<u64>(step, runs)
        .buffer::<u32>(coordinates, table)
        .bytes(&shape)
        .floats(tokens, all * 2 * examples * channels)
        .floats(y, all * examples)
        .buffer::<u32>(basis, all)
}
