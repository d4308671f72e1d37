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

impl Points {
    /// The `k` nearest others of every point, nearest first, as indices within its set: `points` (sets, n, dim) to `out`
    /// (sets, n, k) of u32.
    ///
    /// # Panics
    /// Where a point has fewer than `k` others, or n distances do not fit a block's shared memory (6000 points do).
    pub fn neighbours<B: Bytes>(self, k: usize, [points, out]: [B; 2]) -> Call<B> {
        assert!(k < self.points, "{k} others of {} points", self.points);
        let shared = self.points * size_of::<f64>();
        assert!(shared <= 48 << 10, "{} points do not fit a block's shared memory", self.points);
        Call::new("neighbours", [self.points, self.sets, 1])
            .shared(shared)
            .floats(points, self.sets * self.points * self.dim)
            .int(self.points)
            .int(self.dim)
            .int(k)
            .buffer::<u32>(out, self.sets * self.points * k)
    }
}
