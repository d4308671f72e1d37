//! The linear maps of a model that can get adapters, and what HuggingFace calls them.

use crate::{
    ScienceError,
    model::language::{LanguageModel, Projection},
};
use taskvec_model::spec::LoraSpec;

/// A linear map as HuggingFace's model has it: in GPT-2, that of queries, keys and values is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Where it is in the model, as in HuggingFace's: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Its block, from 0.
    pub block: usize,
    /// Its place among all modules of the model.
    pub number: u32,
    pub inputs: usize,
    /// The maps it consists of here, and how many outputs each has.
    pub parts: Vec<(Projection, usize)>,
}

impl Module {
    pub fn outputs(&self) -> usize {
        self.parts.iter().map(|(_, outputs)| outputs).sum()
    }

    /// What PEFT calls A or B of its adapter.
    pub fn parameter(&self, part: char) -> String {
        format!("base_model.model.{}.lora_{part}.weight", self.path)
    }

    /// What [`LoraSpec::targets`] calls it: `q_proj`.
    pub fn target(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// All modules, block after block.
pub(super) fn modules(model: &LanguageModel) -> Vec<Module> {
    let arch = model.config().arch;
    let blocks = match arch {
        "gpt2" => "transformer.h",
        "mamba2" => "backbone.layers",
        _ => "model.layers",
    };
    let mut modules: Vec<Module> = Vec::new();
    // A clone, which shares the weights: maps are found in order to be changed.
    for (block, maps) in model.clone().blocks_mut().iter_mut().enumerate() {
        for projection in Projection::ALL {
            let Some(linear) = maps.linear_mut(projection) else { continue };
            let [outputs, inputs] = *linear.weight().dims() else { continue };
            let path = format!("{blocks}.{block}.{}", name(arch, projection));
            match modules.last_mut() {
                Some(last) if last.path == path => last.parts.push((projection, outputs)),
                _ => {
                    let number = modules.len() as u32;
                    modules.push(Module { path, block, number, inputs, parts: vec![(projection, outputs)] });
                }
            }
        }
    }
    modules
}

/// The module of a projection, within its block.
fn name(arch: &str, projection: Projection) -> String {
    let (gpt2, part) = match projection {
        Projection::Q | Projection::K | Projection::V => ("attn.c_attn", "self_attn"),
        Projection::Out => ("attn.c_proj", "self_attn"),
        Projection::Gate | Projection::Up => ("mlp.c_fc", "mlp"),
        Projection::Down => ("mlp.c_proj", "mlp"),
        Projection::MixerIn | Projection::MixerOut => ("mixer", "mixer"),
    };
    if arch == "gpt2" { gpt2.to_owned() } else { format!("{part}.{projection}") }
}

/// Does PEFT refuse adapters of a module? It does where transformers' fast path reads the weight beside the module.
fn refused_by_peft(arch: &str, target: &str) -> bool {
    (arch, target) == ("mamba2", "out_proj")
}

/// The modules that `spec` means.
///
/// # Errors
/// [`ScienceError::NoSuchLayers`] and [`ScienceError::NoSuchModules`], which say what there is;
/// [`ScienceError::NotForPeft`].
pub(super) fn selected(model: &LanguageModel, spec: &LoraSpec) -> Result<Vec<Module>, ScienceError> {
    let config = model.config();
    let Some((from, to)) = spec.layers.resolve(config.layers as u32) else {
        return Err(ScienceError::NoSuchLayers { asked: spec.layers, layers: config.layers });
    };
    let mut modules = modules(model);
    let mut known: Vec<String> = Vec::new();
    for module in modules.iter().filter(|m| !refused_by_peft(config.arch, m.target())) {
        if !known.iter().any(|name| name == module.target()) {
            known.push(module.target().to_owned());
        }
    }
    if let Some(module) = spec.targets.iter().find(|target| refused_by_peft(config.arch, target)) {
        return Err(ScienceError::NotForPeft { arch: config.arch, module: module.clone(), known });
    }
    let unknown: Vec<String> = spec.targets.iter().filter(|t| !known.contains(t)).cloned().collect();
    if !unknown.is_empty() {
        return Err(ScienceError::NoSuchModules { arch: config.arch, unknown, known });
    }
    let within = from as usize..=to as usize;
    modules.retain(|m| within.contains(&(m.block + 1)) && spec.targets.iter().any(|t| t == m.target()));
    Ok(modules)
}
