//! A run as it was: a copy in the host's memory, from which checkpoints are written while the machine goes on.

use super::{Result, layout::Layout};
use crate::{
    engine::{moments_of, network_of},
    model::{Sizes, Transformer},
    optim::Moments,
};
use taskvec_model::job::Purpose;

/// What a checkpoint of a run holds. The bytes are kept as the machine has them, since it waits while they are copied.
pub struct Snapshot {
    sizes: Sizes,
    /// f32, as [`Layout`] has them; so are the moments, first and second.
    parameters: Vec<u8>,
    moments: Option<[Vec<u8>; 2]>,
}

impl Snapshot {
    pub(super) fn new(sizes: Sizes, parameters: Vec<u8>, moments: Option<[Vec<u8>; 2]>) -> Self {
        Self { sizes, parameters, moments }
    }

    /// Has it all that a checkpoint of this purpose holds?
    pub fn serves(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Weights => true,
            Purpose::Resume => self.moments.is_some(),
        }
    }

    /// The model.
    ///
    /// # Errors
    /// Tensor errors.
    pub fn network(&self) -> Result<Transformer> {
        Ok(network_of(self.sizes, &self.dense(&self.parameters))?)
    }

    /// The optimiser's moments, in the order of the model's parameters; none where they were not copied.
    ///
    /// # Errors
    /// Tensor errors.
    pub fn moments(&self) -> Result<Option<Vec<Moments>>> {
        let of = |[m, v]: &[Vec<u8>; 2]| moments_of(self.sizes, [&self.dense(m), &self.dense(v)]);
        Ok(self.moments.as_ref().map(of).transpose()?)
    }

    /// One parameter after the other.
    fn dense(&self, bytes: &[u8]) -> Vec<f32> {
        let places: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Layout::new(self.sizes).0.gathered(&places)
    }
}
