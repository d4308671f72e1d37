//! A low-rank update of a linear map (Hu et al. 2021, "LoRA").

use crate::rng::{Purpose, Stream};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;
use taskvec_kernels::linear_t;

/// Adds `scale · B·A·dropout(x)` to what a linear map makes of x. Computed in the type of A and B, whatever that of the
/// model, and rounded once, after the sum.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    /// (rank, inputs).
    pub(crate) a: Tensor,
    /// (outputs, rank).
    pub(crate) b: Tensor,
    pub(crate) scale: f64,
    /// In training: what is dropped, and the number of the module for which it is.
    pub(crate) dropout: Option<(Arc<Dropout>, u32)>,
}

impl Adapter {
    /// `x` (…, inputs) and what the map made of it, (…, outputs).
    pub(crate) fn added(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let mut input = x.to_dtype(self.a.dtype())?;
        if let Some((dropout, module)) = &self.dropout {
            input = (&input * dropout.factors(*module, &input)?)?;
        }
        let low = (linear_t(&input, &self.a, None)? * self.scale)?;
        let update = linear_t(&low, &self.b, None)?;
        (y.to_dtype(update.dtype())? + update)?.to_dtype(y.dtype())
    }
}

/// Which inputs of the adapters are dropped in a pass: functions of the seed, the update, the module, the token's place in
/// its batch and the input alone. So a block can be computed again, a batch in pieces, and a run from any step, with the same
/// ones dropped.
#[derive(Clone, Debug)]
pub(crate) struct Dropout {
    /// Below 1.
    pub(crate) probability: f64,
    pub(crate) seed: u64,
    /// From 1, below 2^32.
    pub(crate) update: u64,
    /// Of each token of the pass: which row of the batch it is in, and where.
    pub(crate) places: Vec<(u32, u32)>,
}

impl Dropout {
    /// What `x` (N, inputs) is multiplied with: 0, or 1 / (1 − p).
    fn factors(&self, module: u32, x: &Tensor) -> Result<Tensor> {
        let (tokens, inputs) = x.dims2()?;
        if tokens != self.places.len() {
            candle_core::bail!("dropout for {} tokens does not fit {tokens}", self.places.len());
        }
        let step = self.update << 24 | u64::from(module);
        let stream = Stream { seed: self.seed, purpose: Purpose::Dropout, step };
        let kept = (1.0 / (1.0 - self.probability)) as f32;
        let limit = (self.probability * 2f64.powi(32)) as u32;
        let mut factors = vec![0.0f32; tokens * inputs];
        factors.par_chunks_mut(inputs.max(1)).zip(&self.places).for_each(|(factors, &(row, position))| {
            let mut words = vec![0; inputs];
            stream.at(row.into()).after(position * inputs.div_ceil(4) as u32).words(&mut words);
            factors.iter_mut().zip(words).for_each(|(f, word)| *f = if word < limit { 0.0 } else { kept });
        });
        Tensor::from_vec(factors, (tokens, inputs), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    const TOKENS: usize = 60;
    const INPUTS: usize = 201;

    fn dropout(probability: f64, places: Vec<(u32, u32)>) -> Dropout {
        Dropout { probability, seed: 3, update: 5, places }
    }

    fn factors(dropout: &Dropout, module: u32) -> Vec<Vec<f32>> {
        let x = Tensor::zeros((dropout.places.len(), INPUTS), DType::F32, &Device::Cpu).unwrap();
        dropout.factors(module, &x).unwrap().to_vec2().unwrap()
    }

    fn places() -> Vec<(u32, u32)> {
        (0..TOKENS as u32).map(|t| (t / 20, t % 20)).collect()
    }

    #[test]
    fn as_many_are_dropped_as_is_asked_and_the_rest_make_up_for_them() {
        for probability in [0.1, 0.5] {
            let all = factors(&dropout(probability, places()), 7).concat();
            let kept = (1.0 / (1.0 - probability)) as f32;
            assert!(all.iter().all(|f| *f == 0.0 || *f == kept));
            let n = all.len() as f64;
            let dropped = all.iter().filter(|f| **f == 0.0).count() as f64;
            let deviation = (n * probability * (1.0 - probability)).sqrt();
            assert!((dropped - n * probability).abs() < 4.0 * deviation, "{dropped} of {n} at {probability}");
        }
        assert!(factors(&dropout(0.0, places()), 7).concat().iter().all(|f| *f == 1.0));
    }

    /// Two masks of p = 0.5 agree in half of the places when they have nothing to do with each other.
    #[test]
    fn seeds_updates_modules_and_tokens_have_masks_of_their_own() {
        let first = factors(&dropout(0.5, places()), 7);
        let others = [
            factors(&dropout(0.5, places()), 8),
            factors(&Dropout { seed: 4, ..dropout(0.5, places()) }, 7),
            factors(&Dropout { update: 6, ..dropout(0.5, places()) }, 7),
            factors(&dropout(0.5, places().into_iter().map(|(row, at)| (row + 3, at)).collect()), 7),
            factors(&dropout(0.5, places().into_iter().map(|(row, at)| (row, at + 20)).collect()), 7),
        ];
        let (a, n) = (first.concat(), (TOKENS * INPUTS) as f64);
        for (i, other) in others.iter().enumerate() {
            let agree = a.iter().zip(other.concat()).filter(|(a, b)| **a == *b).count() as f64;
            assert!((agree - n / 2.0).abs() < 4.0 * (n / 4.0).sqrt(), "{i}: {agree} of {n}");
        }
        let along = first.windows(2).flat_map(|w| w[0].iter().zip(&w[1])).filter(|(a, b)| a == b).count() as f64;
        let n = ((TOKENS - 1) * INPUTS) as f64;
        assert!((along - n / 2.0).abs() < 4.0 * (n / 4.0).sqrt(), "neighbouring tokens: {along} of {n}");
    }

    #[test]
    fn a_token_has_the_same_mask_in_whatever_pass_and_on_any_number_of_threads() {
        let whole = factors(&dropout(0.1, places()), 7);
        let part = factors(&dropout(0.1, places()[20..47].to_vec()), 7);
        assert_eq!(part, whole[20..47]);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| factors(&dropout(0.1, places()), 7)), whole);
        }
    }
}
