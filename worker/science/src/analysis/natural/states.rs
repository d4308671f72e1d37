//! Hidden states of prompts, by layer and site.

use super::pass;
use crate::{
    ScienceError,
    hook::{Capture, HookPoint},
    task::Prompt,
};
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use taskvec_model::spec::{PatchPositions, Site};

/// States of prompts: rows of d values for each layer and site.
pub(super) struct States {
    layers: BTreeSet<u32>,
    sites: Vec<Site>,
    positions: PatchPositions,
    points: BTreeMap<(u32, Site), Vec<f64>>,
}

impl States {
    /// One row for each prompt: its last token of each site.
    pub fn new(layers: impl IntoIterator<Item = u32>, sites: &[Site]) -> Self {
        let positions = PatchPositions::Last;
        Self { layers: layers.into_iter().collect(), sites: sites.to_vec(), positions, points: BTreeMap::new() }
    }

    /// The last token of one site, or all of them, one after the other.
    pub fn at(layers: impl IntoIterator<Item = u32>, site: Site, positions: PatchPositions) -> Self {
        Self { positions, ..Self::new(layers, &[site]) }
    }

    /// A hook that keeps what [`Self::add`] takes, of the prompts in certain rows.
    pub fn capture<'a>(&self, prompts: impl Iterator<Item = (usize, &'a Prompt)>) -> Result<Capture, ScienceError> {
        pass::capture(&self.layers, &self.sites, self.positions, prompts)
    }

    /// Adds the states of a pass, whose hook it was.
    pub fn add(&mut self, mut captured: Capture) -> Result<(), ScienceError> {
        for &layer in &self.layers {
            let states = captured.take(HookPoint::hidden(layer as usize))?;
            let (tokens, width) = states.dims2()?;
            let states = states.reshape((tokens / self.sites.len(), self.sites.len(), width))?;
            for (i, &site) in self.sites.iter().enumerate() {
                self.points.entry((layer, site)).or_default().extend(finite(&states.narrow(1, i, 1)?, layer)?);
            }
        }
        Ok(())
    }

    /// The points in another order: first that which came `order[0]`th, and so on.
    pub fn arranged(mut self, order: &[usize]) -> Self {
        for points in self.points.values_mut() {
            let width = points.len() / order.len().max(1);
            *points = order.iter().flat_map(|&i| &points[i * width..(i + 1) * width]).copied().collect();
        }
        self
    }

    /// Layer and site with their points, in order.
    pub fn iter(&self) -> impl Iterator<Item = ((u32, Site), &[f64])> {
        self.points.iter().map(|(place, points)| (*place, points.as_slice()))
    }
}

/// The mean of rows of `width` values.
pub(super) fn mean(points: &[f64], width: usize) -> Vec<f64> {
    let mut mean = vec![0.0; width];
    for row in points.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
    }
    let n = (points.len() / width).max(1) as f64;
    mean.iter_mut().for_each(|m| *m /= n);
    mean
}

/// The values of a tensor, row-major.
fn finite(states: &Tensor, layer: u32) -> Result<Vec<f64>, ScienceError> {
    let values: Vec<f64> = states.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(values),
        false => Err(ScienceError::NotFinite { layer }),
    }
}
