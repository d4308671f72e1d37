//! The adapters of a model, attached to it or apart.

use super::module::{Module, modules, selected};
use crate::{
    ScienceError,
    model::language::{Adapter, Dropout, LanguageModel, wide},
    rng::{Purpose, Stream, name_step},
};
use candle_core::{Device, Result, Tensor, Var};
use std::sync::Arc;
use taskvec_model::spec::LoraSpec;

/// Low-rank adapters of some of a model's linear maps. They are on the CPU, as what trains them is, and are brought to where
/// the maps are when they are attached.
#[derive(Clone, Debug)]
pub struct Adapters {
    modules: Vec<Module>,
    /// A (rank, inputs) and B (outputs, rank) of each module in turn.
    parameters: Vec<(String, Tensor)>,
    scale: f64,
}

/// The numbers that all adapters of a model share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Form {
    pub rank: usize,
    pub alpha: f64,
}

impl Form {
    pub fn of(spec: &LoraSpec) -> Self {
        Self { rank: spec.rank as usize, alpha: spec.alpha }
    }
}

impl Adapters {
    /// New ones, with which the model computes what it computes without: every B is zero.
    ///
    /// # Errors
    /// Where the model has no such layers or modules; the error says what it has.
    pub fn fresh(model: &LanguageModel, spec: &LoraSpec, seed: u64) -> std::result::Result<Self, ScienceError> {
        let dtype = wide(model.dtype());
        let make = |name: &str, shape: [usize; 2]| match is_b(name) {
            true => Tensor::zeros(&shape, dtype, &Device::Cpu),
            false => initial_a(name, shape, seed)?.to_dtype(dtype),
        };
        Ok(Self::build(selected(model, spec)?, Form::of(spec), make)?)
    }

    /// With parameters of these names and shapes from elsewhere.
    pub(super) fn build<E>(
        modules: Vec<Module>,
        form: Form,
        mut make: impl FnMut(&str, [usize; 2]) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        let mut parameters = Vec::with_capacity(2 * modules.len());
        for module in &modules {
            for (part, shape) in [('A', [form.rank, module.inputs]), ('B', [module.outputs(), form.rank])] {
                let name = module.parameter(part);
                let tensor = make(&name, shape)?;
                parameters.push((name, tensor));
            }
        }
        Ok(Self { modules, parameters, scale: form.alpha / form.rank as f64 })
    }

    /// Every A and B with the name PEFT gives it, in a fixed order.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// The same as variables, whose gradients are tracked.
    pub fn trainable(&self) -> Result<Self> {
        self.map(|t| Ok(Var::from_tensor(t)?.into_inner()))
    }

    /// The same parameters, in the same memory, without gradients.
    pub(super) fn untracked(&self) -> Result<Self> {
        self.map(|t| Ok(t.detach()))
    }

    fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let changed = self.parameters.iter().map(|(name, t)| Ok((name.clone(), change(t)?)));
        Ok(Self { parameters: changed.collect::<Result<_>>()?, modules: self.modules.clone(), scale: self.scale })
    }

    /// The first block that has an adapter, from 0.
    pub(super) fn first_block(&self) -> usize {
        self.modules.iter().map(|m| m.block).min().unwrap_or(0)
    }

    /// Which parameters are those of a block, by their place.
    pub(super) fn of_block(&self, block: usize) -> impl Iterator<Item = usize> {
        let modules = self.modules.iter().enumerate().filter(move |(_, m)| m.block == block);
        modules.flat_map(|(i, _)| [2 * i, 2 * i + 1])
    }

    /// The model with these adapters, which drop inputs as `dropout` says.
    pub(super) fn attached(&self, model: &LanguageModel, dropout: Option<&Arc<Dropout>>) -> Result<LanguageModel> {
        let mut model = model.clone();
        for (module, pair) in self.modules.iter().zip(self.parameters.chunks_exact(2)) {
            let (a, b) = (&pair[0].1, &pair[1].1);
            let mut from = 0;
            for &(projection, outputs) in &module.parts {
                let block = model.blocks_mut().get_mut(module.block);
                let Some(linear) = block.and_then(|block| block.linear_mut(projection)) else {
                    candle_core::bail!("the model has no {} for its adapter", module.path);
                };
                let device = linear.weight().device().clone();
                let (a, b) = (a.to_device(&device)?, b.narrow(0, from, outputs)?.to_device(&device)?);
                let dropout = dropout.map(|dropout| (Arc::clone(dropout), module.number));
                linear.adapt(Adapter { a, b, scale: self.scale, dropout });
                from += outputs;
            }
        }
        Ok(model)
    }
}

impl LanguageModel {
    /// The same model with adapters. The weights are shared, not copied.
    ///
    /// # Errors
    /// Where the adapters are those of another model.
    pub fn with_adapters(&self, adapters: &Adapters) -> Result<Self> {
        let own = modules(self);
        if let Some(stranger) = adapters.modules.iter().find(|m| own.get(m.number as usize) != Some(m)) {
            let shape = [stranger.outputs(), stranger.inputs];
            candle_core::bail!("the model has no {} of shape {shape:?} for its adapter", stranger.path);
        }
        adapters.attached(self, None)
    }
}

fn is_b(name: &str) -> bool {
    name.ends_with(".lora_B.weight")
}

/// A of a new adapter, (rank, inputs).
fn initial_a(name: &str, [rank, inputs]: [usize; 2], seed: u64) -> Result<Tensor> {
    let stream = Stream { seed, purpose: Purpose::Adapters, step: name_step(name) };
    let bound = 1.0 / (inputs as f64).sqrt();
    let row = |i: usize| {
        let mut draws = stream.at(i as u64);
        (0..inputs).map(move |_| bound * (2.0 * draws.uniform() - 1.0)).collect::<Vec<f64>>()
    };
    let values: Vec<f64> = (0..rank).flat_map(row).collect();
    Tensor::from_vec(values, (rank, inputs), &Device::Cpu)
}
