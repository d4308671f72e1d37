//! Gradients of the adapters, one block at a time.
//!
//! A whole graph of the model would keep every intermediate result of every block: for 8 billion parameters and a few
//! thousand tokens, more than a GPU holds. Here the forward pass builds no graph at all and keeps only what enters each
//! block from the first adapted one on, (N, d) each. Then, from the last block to that first one, each is computed again
//! from what entered it, now with a graph; the gradient of its output is pulled back through it, and the graph goes away
//! before the next one is built. Alive at any time are, besides the weights: L states of (N, d), the gradients of the
//! adapters, and the graph of one block (or of the logits, which are made for the tokens before answer tokens only). The
//! price is a second forward pass through the adapted blocks and those after them (Chen et al. 2016, "Training deep nets
//! with sublinear memory cost").
//!
//! Blocks before the first adapted one get no backward pass.

use super::{Adapters, Example};
use crate::{
    ScienceError,
    model::language::{Batch, Dropout, LanguageModel, Pass, Rows},
};
use candle_core::{DType, Result, Tensor, Var, backprop::GradStore};
use std::sync::Arc;
use taskvec_kernels::{Span, cross_entropy};

/// Of the loss by each parameter, in the order of [`Adapters::parameters`].
pub struct Gradients {
    pub loss: f64,
    pub by_parameter: Vec<Tensor>,
}

/// What is dropped in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutAt {
    pub probability: f64,
    pub seed: u64,
    /// From 1.
    pub update: u64,
}

/// The mean cross-entropy over all target tokens of a batch and its gradients by the adapters, which must be
/// [trainable](Adapters::trainable). The batch is computed in `pieces` of as many examples each, one after the other; the
/// gradient is the same to rounding, dropout included.
///
/// # Errors
/// Rows that are too long or have tokens unknown to the model; tensor errors.
pub fn gradients(
    model: &LanguageModel,
    adapters: &Adapters,
    examples: &[Example],
    pieces: usize,
    dropout: Option<DropoutAt>,
) -> std::result::Result<Gradients, ScienceError> {
    let targets: usize = examples.iter().map(|e| e.target.len()).sum();
    let size = examples.len().div_ceil(pieces.max(1)).max(1);
    let mut sum: Option<Gradients> = None;
    for (i, examples) in examples.chunks(size).enumerate() {
        let piece = Piece::new(examples, i * size)?;
        let part = piece.gradients(model, adapters, targets as f64, dropout)?;
        sum = Some(match sum {
            None => part,
            Some(sum) => sum.plus(part)?,
        });
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a batch without examples has no loss".into()).into())
}

impl Gradients {
    fn plus(self, other: Self) -> Result<Self> {
        let by_parameter = self.by_parameter.iter().zip(&other.by_parameter).map(|(a, b)| a + b);
        Ok(Self { loss: self.loss + other.loss, by_parameter: by_parameter.collect::<Result<_>>()? })
    }

    /// As an optimiser wants them.
    pub fn stored(&self, adapters: &Adapters) -> GradStore {
        let mut store = GradStore::default();
        for ((_, parameter), gradient) in adapters.parameters().iter().zip(&self.by_parameter) {
            store.insert(parameter, gradient.clone());
        }
        store
    }
}

/// Examples that go through the model together.
struct Piece {
    batch: Batch,
    /// The place of the first among the examples of the whole batch.
    first: usize,
    /// The tokens after which a target token comes, and those targets.
    sites: Vec<u32>,
    targets: Vec<u32>,
}

impl Piece {
    fn new(examples: &[Example], first: usize) -> Result<Self> {
        let (mut rows, mut sites, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for Example { prompt, target } in examples {
            let (Some((_, before)), false) = (target.split_last(), prompt.is_empty()) else {
                candle_core::bail!("an example without prompt or target cannot be learnt")
            };
            let answer = start + prompt.len() as u32 - 1;
            sites.extend(answer..answer + target.len() as u32);
            targets.extend(target);
            let row = [prompt, before].concat();
            start += row.len() as u32;
            rows.push(row);
        }
        Ok(Self { batch: Batch::new(rows).expect("no prompt is empty"), first, sites, targets })
    }

    /// Of the sum over this piece's targets, divided by the number of `all` targets of the batch.
    fn gradients(
        &self,
        model: &LanguageModel,
        adapters: &Adapters,
        all: f64,
        dropout: Option<DropoutAt>,
    ) -> std::result::Result<Gradients, ScienceError> {
        let rows = Rows::of(&self.batch);
        model.check(&self.batch, &rows)?;
        let spans = (0..self.batch.len()).map(|i| Span::alone(self.batch.range(i))).collect();
        let mut pass = model.pass(&rows, spans, None)?;
        let dropout = dropout.filter(|d| d.probability > 0.0).map(|d| Arc::new(self.dropout(d)));
        let first = adapters.first_block();
        let untracked = adapters.untracked()?.attached(model, dropout.as_ref())?;
        let (mut entered, last) = self.states(&untracked, first, &mut pass)?;
        let (loss, mut gradient) = self.loss(model, &last, all)?;
        let tracked = adapters.attached(model, dropout.as_ref())?;
        let mut by_parameter: Vec<Option<Tensor>> = vec![None; adapters.parameters().len()];
        while let Some(x) = entered.pop() {
            let block = first + entered.len();
            // What enters the first adapted block depends on no adapter.
            let x = if block > first { Var::from_tensor(&x)?.into_inner() } else { x };
            let y = tracked.blocks[block].forward(&x, block, None, &mut pass)?;
            let mut store = pulled_back(&y, &gradient)?;
            for i in adapters.of_block(block) {
                by_parameter[i] = Some(taken(&mut store, &adapters.parameters()[i].1)?);
            }
            if block > first {
                gradient = taken(&mut store, &x)?;
            }
        }
        Ok(Gradients { loss, by_parameter: by_parameter.into_iter().flatten().collect() })
    }

    fn dropout(&self, DropoutAt { probability, seed, update }: DropoutAt) -> Dropout {
        let row = |i: usize| (0..self.batch.range(i).len()).map(move |at| ((self.first + i) as u32, at as u32));
        Dropout { probability, seed, update, places: (0..self.batch.len()).flat_map(row).collect() }
    }

    /// What enters each block from `first` on, and what leaves the last, without any graph.
    fn states(&self, model: &LanguageModel, first: usize, pass: &mut Pass<'_>) -> Result<(Vec<Tensor>, Tensor)> {
        let mut x = model.embed(self.batch.tokens(), pass)?;
        let mut entered = Vec::new();
        for (i, block) in model.blocks.iter().enumerate() {
            if i >= first {
                entered.push(x.clone());
            }
            x = block.forward(&x, i, None, pass)?;
        }
        Ok((entered, x))
    }

    /// The loss, and its gradient by what leaves the last block.
    fn loss(&self, model: &LanguageModel, last: &Tensor, all: f64) -> Result<(f64, Tensor)> {
        let last = Var::from_tensor(last)?.into_inner();
        let sites = Tensor::new(self.sites.as_slice(), last.device())?;
        let logits = model.logits(&last.index_select(&sites, 0)?)?;
        let loss = (cross_entropy(&logits, &self.targets)? * (self.targets.len() as f64 / all))?;
        let gradient = taken(&mut loss.backward()?, &last)?;
        Ok((loss.to_dtype(DType::F64)?.to_scalar()?, gradient))
    }
}

/// The gradients of what `y` depends on, where `gradient` is that of `y`: the sum of their products has just that one, and
/// its value is of no interest.
fn pulled_back(y: &Tensor, gradient: &Tensor) -> Result<GradStore> {
    (y * gradient)?.sum_all()?.backward()
}

/// A gradient, detached: it would keep the graph alive that it was made from, and be differentiated itself.
fn taken(store: &mut GradStore, of: &Tensor) -> Result<Tensor> {
    match store.remove(of) {
        Some(gradient) => Ok(gradient.detach()),
        None => candle_core::bail!("no gradient reached a tensor of shape {:?}", of.shape()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        load::{Files, Room},
        model::language::Logits,
    };
    use taskvec_model::spec::{LoraLayers, LoraSpec};

    #[test]
    fn only_one_block_has_a_graph_at_a_time() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/language/llama");
        let model = Files::find(folder, None).unwrap().load(DType::F32, &[Room::cpu()]).unwrap();
        let targets = vec!["q_proj".to_owned(), "down_proj".to_owned()];
        let spec = LoraSpec { rank: 2, alpha: 2.0, dropout: 0.0, targets, layers: LoraLayers::All };
        let adapters = Adapters::fresh(&model, &spec, 1).unwrap().trainable().unwrap();
        let example = Example { prompt: vec![5, 7, 11], target: vec![2, 3] };
        let piece = Piece::new(&[example], 0).unwrap();
        let rows = Rows::of(&piece.batch);
        let mut pass = model.pass(&rows, vec![Span::alone(0..4)], None).unwrap();

        let untracked = adapters.untracked().unwrap().attached(&model, None).unwrap();
        let (entered, last) = piece.states(&untracked, 0, &mut pass).unwrap();
        assert_eq!(entered.len(), 3);
        assert!(!last.track_op() && entered.iter().all(|x| !x.track_op()), "what is kept holds no graph");
        let (_, gradient) = piece.loss(&model, &last, 2.0).unwrap();
        assert!(!gradient.track_op(), "a gradient keeps no graph alive");

        let tracked = adapters.attached(&model, None).unwrap();
        let x = Var::from_tensor(&entered[1]).unwrap().into_inner();
        let block = tracked.blocks[1].forward(&x, 1, None, &mut pass).unwrap().sorted_nodes().len();
        let logits = tracked.forward(&piece.batch, None, None, Logits::All).unwrap().unwrap();
        let whole = logits.sorted_nodes().len();
        assert!(block > 10 && 5 * block < 2 * whole, "{block} nodes of {whole}");
    }
}
