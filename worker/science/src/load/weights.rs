//! Tensors by name, whatever file they come from.

use super::LoadError;
use candle_core::{DType, Device, Tensor};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::PathBuf,
};

/// A source of tensors under the names that HuggingFace's models give them.
pub trait Weights {
    /// Shapes of all tensors there are.
    fn shapes(&self) -> &BTreeMap<String, Vec<usize>>;

    /// The file that has a tensor (or should have it), for messages.
    fn file(&self, name: &str) -> PathBuf;

    /// Rows of a tensor, along its first dimension, in [`Self::dtype`] on the CPU. The tensor is there, and so are the
    /// rows.
    fn read(&self, name: &str, rows: Range<usize>) -> Result<Tensor, LoadError>;

    /// What tensors are converted to.
    fn dtype(&self) -> DType;
}

/// The parameters of a model that is being put together: checks every shape, and in the end that nothing was left over.
pub struct Parameters<'a> {
    weights: &'a dyn Weights,
    used: BTreeSet<String>,
    device: Device,
}

impl<'a> Parameters<'a> {
    pub fn new(weights: &'a dyn Weights) -> Self {
        Self { weights, used: BTreeSet::new(), device: Device::Cpu }
    }

    pub fn dtype(&self) -> DType {
        self.weights.dtype()
    }

    /// Where tensors go from now on; at first, to the CPU.
    pub fn move_to(&mut self, device: &Device) {
        self.device = device.clone();
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn has(&self, name: &str) -> bool {
        self.weights.shapes().contains_key(name)
    }

    /// The tensor `name`, which must have `shape`.
    ///
    /// # Errors
    /// Where it is missing or has another shape; where it cannot be read.
    pub fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let rows = shape.first().copied().unwrap_or(0);
        self.rows(name, shape, 0..rows)
    }

    /// Rows of the tensor `name`, which as a whole must have `shape`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn rows(&mut self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Tensor, LoadError> {
        match self.weights.shapes().get(name) {
            None => Err(LoadError::MissingTensor {
                path: self.weights.file(name),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
            }),
            Some(found) if found != shape => Err(LoadError::Misshapen {
                path: self.weights.file(name),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: found.clone(),
            }),
            Some(_) => {
                self.used.insert(name.to_owned());
                Ok(self.weights.read(name, rows)?.to_device(&self.device)?)
            }
        }
    }

    /// Nothing may be left over, but what `harmless` says computes nothing.
    ///
    /// # Errors
    /// Where something is.
    pub fn finish(self, harmless: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        let left = self.weights.shapes().keys().filter(|name| !self.used.contains(*name) && !harmless(name));
        let tensors: Vec<String> = left.cloned().collect();
        match tensors.first() {
            None => Ok(()),
            Some(first) => Err(LoadError::ExtraTensors { path: self.weights.file(first), tensors }),
        }
    }
}
