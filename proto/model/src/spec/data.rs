//! Where the sequences of a run come from.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum DataSpec {
    SparseLinear(SparseLinear),
}

/// A mixture of sparse linear regressions: y = W·x + e, with W zero outside the coordinates of the sequence's basis
/// (arXiv 2412.12276, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseLinear {
    /// D: dimension of x.
    pub dim: u32,
    /// Number of latent tasks.
    pub bases: u32,
    /// r: coordinates in a basis.
    pub rank: u32,
    pub overlap: Overlap,
    /// K: (x, y) pairs in a sequence.
    pub examples: u32,
    /// Variance (not deviation) of the noise on y.
    pub noise_variance: f64,
    /// Mean of W on the active coordinates; 0 in the paper.
    pub weight_mean: f64,
    pub y_channel: YChannel,
}

/// How the bases share coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Basis k (from 0) owns coordinates k·r … k·r + r − 1.
    Disjoint,
    /// Two groups of bases, each within its half of the coordinates. In a group of g coordinates, basis j (from 0)
    /// takes the r coordinates j, j + 1, … modulo g, so that bases of one group overlap each other.
    Grouped,
}

/// Which input channel carries y.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YChannel {
    /// Coordinate 0, which also belongs to x (the paper).
    Shared,
    /// A channel of its own: tokens have D + 1 channels.
    Own,
}

impl SparseLinear {
    /// Channels of a token: D, or D + 1 when y has its own.
    pub fn channels(&self) -> u32 {
        match self.y_channel {
            YChannel::Shared => self.dim,
            YChannel::Own => self.dim + 1,
        }
    }

    /// The sorted coordinates of basis `k` (from 0).
    pub fn coordinates(&self, k: u32) -> Vec<u32> {
        match self.overlap {
            Overlap::Disjoint => (k * self.rank..(k + 1) * self.rank).collect(),
            Overlap::Grouped => {
                let half = self.dim / 2;
                let per_group = self.bases / 2;
                let (group, j) = (k / per_group, k % per_group);
                let mut out: Vec<u32> = (0..self.rank).map(|t| group * half + (j + t) % half).collect();
                out.sort_unstable();
                out
            }
        }
    }

    /// Names of the latent tasks, `B1` … in order.
    pub fn latent_tasks(&self) -> Vec<String> {
        (1..=self.bases).map(|k| format!("B{k}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(overlap: Overlap, dim: u32, bases: u32, rank: u32) -> SparseLinear {
        SparseLinear {
            dim,
            bases,
            rank,
            overlap,
            examples: 20,
            noise_variance: 0.01,
            weight_mean: 0.0,
            y_channel: YChannel::Shared,
        }
    }

    #[test]
    fn disjoint_bases_partition_the_coordinates() {
        let d = data(Overlap::Disjoint, 16, 4, 4);
        let all: Vec<u32> = (0..4).flat_map(|k| d.coordinates(k)).collect();
        assert_eq!(all, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn grouped_bases_overlap_inside_their_group_only() {
        let d = data(Overlap::Grouped, 16, 8, 4);
        let shared = |a: u32, b: u32| d.coordinates(a).iter().filter(|c| d.coordinates(b).contains(c)).count();
        for a in 0..8 {
            for b in 0..a {
                assert_eq!(shared(a, b) > 0, a / 4 == b / 4, "bases {a} and {b}");
            }
        }
    }
}
