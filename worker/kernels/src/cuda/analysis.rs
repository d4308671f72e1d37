//! Launches of analyses.

use super::{Bytes, Call};

/// Sets of points, such as the states of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Points {
    pub sets: usize,
    /// Of a set.
    pub points: usize,
    pub dim: usize,
}

/// Bytes of shared memory that a block has on any device.
const SHARED: usize = 48 << 10;

impl Points {
    /// The most points of a set whose neighbours are found: their distances to one of them fit a block's shared memory.
    pub const MOST: usize = SHARED / size_of::<f64>();

    /// The `k` nearest others of every point, nearest first, as indices within its set: `points` (sets, n, dim) to `out`
    /// (sets, n, k) of u32.
    ///
    /// # Panics
    /// Where a point has fewer than `k` others, or there are more than [`Self::MOST`] points.
    pub fn neighbours<B: Bytes>(self, k: usize, [points, out]: [B; 2]) -> Call<B> {
        assert!(k < self.points, "{k} others of {} points", self.points);
        assert!(self.points <= Self::MOST, "{} points do not fit a block's shared memory", self.points);
        let shared = self.points * size_of::<f64>();
        Call::new("neighbours", [self.points, self.sets, 1])
            .shared(shared)
            .floats(points, self.sets * self.points * self.dim)
            .int(self.points)
            .int(self.dim)
            .int(k)
            .result::<u32>(out, self.sets * self.points * k)
    }
}

/// Sequences of which `count` tokens are patched: `first`, and every other from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    pub sequences: usize,
    /// Of each.
    pub tokens: usize,
    pub width: usize,
    pub first: usize,
    pub count: usize,
    /// Are tokens moved by what is given, instead of replaced?
    pub add: bool,
}

impl Patch {
    /// `from` (sequences, tokens, width) to `to`, patched by `moves` (tokens, width).
    ///
    /// # Panics
    /// Where a sequence does not have such tokens.
    pub fn call<B: Bytes>(self, [from, moves, to]: [B; 3]) -> Call<B> {
        let (each, last) = (self.tokens * self.width, self.first + 2 * self.count.max(1) - 2);
        assert!(last < self.tokens, "{self:?}: tokens are missing");
        Call::each("patch_tokens", self.sequences * each, 1)
            .floats(from, self.sequences * each)
            .floats(moves, each)
            .int(self.sequences)
            .int(self.tokens)
            .int(self.width)
            .int(self.first)
            .int(self.count)
            .int(usize::from(self.add))
            .floats(to, self.sequences * each)
    }
}
