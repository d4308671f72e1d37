//! Training of the synthetic models in memory of its own: no tensors, no graph; what a step needs is reused by
//! the next, but for the sequences that are drawn.
//!
//! A batch is cut into pieces of whole sequences, by the sizes of model and batch alone. Each piece goes forward and backward
//! through the whole model on one thread, with its activations in memory that the pieces of all runs share one after the other,
//! and its gradients in its own buffer; these are then added up in the order of the pieces. So nothing depends on the number of threads, and threads meet once a step
//! instead of once an operation.
//!
//! It computes what [`Transformer::forward`], its gradients and [`Optimizer`](crate::optim::Optimizer) compute, to rounding;
//! the tests hold the one against the other.
//!
//! That is on the CPU. [`stacked`] trains on a GPU, several runs at a time.

mod piece;
mod pool;
pub mod stacked;

use crate::{
    data::{self, Bases},
    model::{Parameters, Sizes, Transformer},
    optim::{CLIP_EPSILON, Moments},
    rng::Stream,
};
use candle_core::{Device, Result, Tensor};
use piece::Piece;
use rayon::prelude::*;
use std::convert::Infallible;
use taskvec_kernels::{
    Adam, Precision as Factors,
    slices::{self, Update},
};
use taskvec_model::spec::{Precision, SparseLinear};

/// Fewer tokens than this would make the products of a piece slow.
const TOKENS: usize = 256;
/// Each piece has gradients of its own: more would cost more memory than threads could use.
const PIECES: usize = 8;
/// Parameters that are updated at a time.
const CHUNK: usize = 1 << 14;

/// A model in training.
pub struct Engine {
    sizes: Sizes,
    adam: Adam,
    clip_norm: Option<f64>,
    /// All parameters, one after the other in the model's order.
    parameters: Vec<f32>,
    /// First and second moments of each.
    moments: [Vec<f32>; 2],
    gradients: Vec<f32>,
    pieces: Vec<Piece>,
}

/// What a batch gave before the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchLoss {
    /// Mean squared error.
    pub loss: f64,
    /// The same of predicting 0.
    pub of_zero: f64,
}

impl Engine {
    /// `moments` are those of `network`'s parameters, in their order; none of a model that has not begun.
    ///
    /// # Errors
    /// Tensors that are not f32 on the CPU, or moments of another model.
    pub fn new(
        network: &Transformer,
        moments: Option<&[Moments]>,
        (adam, clip_norm): (Adam, Option<f64>),
        batch: usize,
        precision: Precision,
    ) -> Result<Self> {
        let sizes = network.sizes();
        let parameters = flat(network.parameters().iter().map(|(_, t)| t))?;
        let moments = match moments {
            None => [vec![0.0; parameters.len()], vec![0.0; parameters.len()]],
            Some(moments) => [flat(moments.iter().map(|m| &m.m))?, flat(moments.iter().map(|m| &m.v))?],
        };
        if moments.iter().any(|m| m.len() != parameters.len()) {
            candle_core::bail!("moments of {} parameters beside {}", moments[0].len(), parameters.len());
        }
        let precision = factors(precision);
        let piece = |range| Piece::new(sizes, range, parameters.len(), precision);
        let pieces = cut(batch, sizes.positions).into_iter().map(piece);
        let (pieces, gradients) = (pieces.collect(), vec![0.0; parameters.len()]);
        Ok(Self { sizes, adam, clip_norm, parameters, moments, gradients, pieces })
    }

    /// The loss of the batch that `stream` gives and, left for [`Self::update`], its gradients.
    pub fn gradients(&mut self, of: &SparseLinear, stream: Stream) -> BatchLoss {
        let parameters = views(self.sizes, &self.parameters);
        let targets: usize = self.pieces.iter().map(Piece::targets).sum();
        let pass = |piece: &mut Piece| {
            let batch = data::generate(of, stream, piece.indices(), Bases::Drawn);
            piece.pass(&parameters, &batch, targets)
        };
        let sums: Vec<[f64; 2]> = self.pieces.par_iter_mut().with_max_len(1).map(pass).collect();
        let mean = |i: usize| sums.iter().map(|sum| sum[i]).sum::<f64>() / targets as f64;
        BatchLoss { loss: mean(0), of_zero: mean(1) }
    }

    /// Update `t` (from 1) by the gradients of the last batch; gives their norm before clipping. Where that is not finite,
    /// nothing is changed.
    pub fn update(&mut self, t: u64, learning_rate: f64) -> f64 {
        let parts: Vec<&[f32]> = self.pieces.iter().map(Piece::gradients).collect();
        let sum = |(i, out): (usize, &mut [f32])| {
            let range = i * CHUNK..i * CHUNK + out.len();
            let parts: Vec<&[f32]> = parts.iter().map(|part| &part[range.clone()]).collect();
            slices::summed(&parts, out)
        };
        let squares: Vec<f64> = self.gradients.par_chunks_mut(CHUNK).enumerate().map(sum).collect();
        let norm = squares.iter().sum::<f64>().sqrt();
        if norm.is_finite() {
            let grad_scale = self.clip_norm.map_or(1.0, |limit| (limit / (norm + CLIP_EPSILON)).min(1.0));
            let (adam, at) = (self.adam, Update { t, learning_rate, grad_scale });
            let [m, v] = &mut self.moments;
            (self.parameters.par_chunks_mut(CHUNK))
                .zip(self.gradients.par_chunks(CHUNK))
                .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
                .for_each(|((p, g), (m, v))| slices::adam(&adam, p, g, [m, v], at));
        }
        norm
    }

    /// How many it trains.
    pub fn parameters(&self) -> usize {
        self.parameters.len()
    }

    /// The model as it is now.
    ///
    /// # Errors
    /// Tensor errors.
    pub fn network(&self) -> Result<Transformer> {
        network_of(self.sizes, &self.parameters)
    }

    /// The optimiser's moments, in the order of the model's parameters.
    ///
    /// # Errors
    /// Tensor errors.
    pub fn moments(&self) -> Result<Vec<Moments>> {
        moments_of(self.sizes, self.moments.each_ref().map(Vec::as_slice))
    }
}

/// What a run asks for, as products know it.
pub(crate) fn factors(precision: Precision) -> Factors {
    match precision {
        Precision::F32 => Factors::F32,
        Precision::Tf32 => Factors::Tf32,
        Precision::Bf16 => Factors::Bf16,
    }
}

/// Sequences `from..to` of a batch for each piece: as equal as whole sequences can be.
fn cut(batch: usize, positions: usize) -> Vec<std::ops::Range<usize>> {
    let pieces = (batch * positions / TOKENS).clamp(1, PIECES).min(batch);
    (0..pieces).map(|i| batch * i / pieces..batch * (i + 1) / pieces).collect()
}

/// The values of tensors, one after the other.
fn flat<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    for tensor in tensors {
        values.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(values)
}

/// The model of these parameters, one after the other.
fn network_of(sizes: Sizes, mut parameters: &[f32]) -> Result<Transformer> {
    Transformer::build(sizes, |_, shape| tensor(&mut parameters, shape))
}

/// The moments of each parameter, from the first and second ones of all.
fn moments_of(sizes: Sizes, [mut m, mut v]: [&[f32]; 2]) -> Result<Vec<Moments>> {
    let mut moments = Vec::new();
    Parameters::build(sizes, |_, shape| {
        moments.push(Moments { m: tensor(&mut m, shape)?, v: tensor(&mut v, shape)? });
        Ok::<_, candle_core::Error>(())
    })?;
    Ok(moments)
}

/// The next parameter as a tensor.
fn tensor(rest: &mut &[f32], shape: &[usize]) -> Result<Tensor> {
    let (values, others) = rest.split_at(shape.iter().product());
    *rest = others;
    Tensor::from_slice(values, shape, &Device::Cpu)
}

fn views(sizes: Sizes, mut rest: &[f32]) -> Parameters<&[f32]> {
    let Ok(views) = Parameters::build(sizes, |_, shape| {
        let (values, others) = rest.split_at(shape.iter().product());
        rest = others;
        Ok::<_, Infallible>(values)
    });
    views
}

fn views_mut(sizes: Sizes, mut rest: &mut [f32]) -> Parameters<&mut [f32]> {
    let Ok(views) = Parameters::build(sizes, |_, shape| {
        let (values, others) = std::mem::take(&mut rest).split_at_mut(shape.iter().product());
        rest = others;
        Ok::<_, Infallible>(values)
    });
    views
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_batch_whatever_its_size() {
        for batch in 1..200 {
            for positions in [2, 16, 40, 400] {
                let cuts = cut(batch, positions);
                assert!(cuts.len() <= PIECES && cuts.iter().all(|cut| !cut.is_empty()));
                assert_eq!(cuts.concat_ranges(), (0..batch).collect::<Vec<_>>());
            }
        }
        assert_eq!(cut(64, 16).len(), 4, "the quickstart's");
        assert_eq!(cut(128, 40).len(), 8, "the paper's");
    }

    trait Concat {
        fn concat_ranges(&self) -> Vec<usize>;
    }

    impl Concat for Vec<std::ops::Range<usize>> {
        fn concat_ranges(&self) -> Vec<usize> {
            self.iter().cloned().flatten().collect()
        }
    }
}
