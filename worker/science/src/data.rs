//! Sequences of a sparse linear mixture (arXiv 2412.12276, section 3), each a function of (seed, purpose, step, index).
//!
//! A sequence draws a basis k, weights W ~ N(weight_mean, I) on the coordinates of basis k and 0 elsewhere, K inputs
//! x ~ N(0, I_D) and noise e ~ N(0, noise_variance), and sets y = W·x + e. The stream of an index is used so: block 0
//! gives the basis (also where it is not drawn, so that the other numbers stay the same), and the normals from block 1
//! on are the weights of the basis's coordinates in ascending order, then x_1 … x_K, then e_1 … e_K.
//!
//! A sequence is read as tokens x_1, y_1, …, x_K, y_K. Every token has C channels: x fills channels 0 … D − 1, and y
//! stands alone in channel 0 (`shared`, the paper) or in channel D (`own`).

use crate::rng::{Draws, Stream};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use taskvec_model::spec::{SparseLinear, YChannel};

/// How sequences come by their basis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bases {
    /// Uniformly at random, as in training.
    Drawn,
    /// All have basis `k` (from 0).
    Fixed(u32),
    /// Sequence `index` has basis `index % bases`: the same number of each.
    InTurn,
}

/// Sequences as plain numbers, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequences {
    pub data: SparseLinear,
    /// The basis of each, from 0: (B).
    pub basis: Vec<u32>,
    /// W, zero outside the basis: (B, D).
    pub weights: Vec<f32>,
    /// (B, K, D).
    pub x: Vec<f32>,
    /// (B, K).
    pub y: Vec<f32>,
}

/// The sequences `indices` of a stream. Parallel in the caller's rayon pool; the numbers do not depend on it.
pub fn generate(data: &SparseLinear, stream: Stream, indices: Range<u64>, bases: Bases) -> Sequences {
    let n = (indices.end - indices.start) as usize;
    let (dim, examples) = (data.dim as usize, data.examples as usize);
    let mut out = Sequences {
        data: data.clone(),
        basis: vec![0; n],
        weights: vec![0.0; n * dim],
        x: vec![0.0; n * examples * dim],
        y: vec![0.0; n * examples],
    };
    let coordinates: Vec<Vec<u32>> = (0..data.bases).map(|k| data.coordinates(k)).collect();
    let noise = data.noise_variance.sqrt();
    // Below some thousand normals a sequence costs less than waking a thread.
    let at_once = (4096 / (examples * dim)).max(1);
    (out.basis.par_iter_mut())
        .zip(out.weights.par_chunks_mut(dim))
        .zip(out.x.par_chunks_mut(examples * dim))
        .zip(out.y.par_chunks_mut(examples))
        .enumerate()
        .with_min_len(at_once)
        .for_each(|(i, (((basis, w), x), y))| {
            let index = indices.start + i as u64;
            let mut draws = stream.at(index);
            let drawn = draws.below(data.bases);
            *basis = match bases {
                Bases::Drawn => drawn,
                Bases::Fixed(k) => k,
                Bases::InTurn => (index % u64::from(data.bases)) as u32,
            };
            let active = &coordinates[*basis as usize];
            let mut normals = Normals { draws, spare: None };
            active.iter().for_each(|&c| w[c as usize] = (data.weight_mean + normals.next()) as f32);
            x.iter_mut().for_each(|v| *v = normals.next() as f32);
            for (y, x) in y.iter_mut().zip(x.chunks(dim)) {
                let mean: f64 = active.iter().map(|&c| f64::from(w[c as usize]) * f64::from(x[c as usize])).sum();
                *y = (mean + noise * normals.next()) as f32;
            }
        });
    out
}

/// Normals one at a time.
struct Normals {
    draws: Draws,
    spare: Option<f64>,
}

impl Normals {
    fn next(&mut self) -> f64 {
        self.spare.take().unwrap_or_else(|| {
            let [a, b] = self.draws.normal_pair();
            self.spare = Some(b);
            a
        })
    }
}

impl Sequences {
    /// Number of sequences, B.
    pub fn len(&self) -> usize {
        self.basis.len()
    }

    pub fn is_empty(&self) -> bool {
        self.basis.is_empty()
    }

    /// The input of the model, (B, 2K, C).
    pub fn tokens(&self, device: &Device) -> Result<Tensor> {
        let channels = self.data.channels() as usize;
        let mut out = vec![0.0f32; self.y.len() * 2 * channels];
        self.write_tokens(&mut out);
        Tensor::from_vec(out, (self.len(), 2 * self.data.examples as usize, channels), device)
    }

    /// The same as plain numbers, or without the last token of each sequence where `out` has room for no more. Channels that no
    /// token uses are left as they are.
    pub fn write_tokens(&self, out: &mut [f32]) {
        let (dim, channels) = (self.data.dim as usize, self.data.channels() as usize);
        let y_channel = match self.data.y_channel {
            YChannel::Shared => 0,
            YChannel::Own => dim,
        };
        let tokens = (out.len() / self.len().max(1)).max(1);
        let pairs = out.chunks_mut(tokens).flat_map(|sequence| sequence.chunks_mut(2 * channels));
        for ((pair, x), y) in pairs.zip(self.x.chunks(dim)).zip(&self.y) {
            pair[..dim].copy_from_slice(x);
            if let Some(second) = pair.get_mut(channels + y_channel) {
                *second = *y;
            }
        }
    }

    /// What the model should predict at the x positions: y, (B, K).
    pub fn targets(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&self.y, (self.len(), self.data.examples as usize), device)
    }
}
