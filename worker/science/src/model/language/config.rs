//! What distinguishes the architectures: each is a value of [`Config`], none has code of its own.

use crate::hook::BlockPoint;
use taskvec_kernels::Activation;

/// A decoder: embedding, blocks that add to a residual stream, a norm and the unembedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `llama`, `gemma2`, `olmo`, `olmo2`, `gpt2` or `mamba2`.
    pub arch: &'static str,
    /// Number of blocks, L.
    pub layers: usize,
    /// Width of the residual stream, d.
    pub width: usize,
    /// Rows of the embedding, V.
    pub vocabulary: usize,
    /// Longest row the model was made for; none where it has no such limit.
    pub context: Option<usize>,
    pub embedding: Embedding,
    pub norm: NormConfig,
    pub placement: Placement,
    pub mixer: MixerConfig,
    /// None where blocks have a mixer only.
    pub mlp: Option<MlpConfig>,
    pub unembedding: Unembedding,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embedding {
    /// What token embeddings are multiplied with, rounded to the model's type.
    pub scale: Option<f64>,
    /// Does every position have a learned vector that is added?
    pub positions: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unembedding {
    /// Is its weight the embedding's?
    pub tied: bool,
    /// Logits become `cap · tanh(logit / cap)`.
    pub softcap: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    pub kind: NormKind,
    pub epsilon: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / √(mean(x²) + ε) · w`.
    Rms,
    /// The same with `1 + w`.
    RmsPlusOne,
    /// Layer norm with weight and bias.
    Layer,
    /// Layer norm without parameters.
    LayerPlain,
}

/// Where a block's norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// `x + f(norm(x))`.
    Before,
    /// `x + norm(f(x))`.
    After,
    /// `x + norm(f(norm(x)))`.
    Both,
}

/// What moves information between tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum MixerConfig {
    Attention(AttentionConfig),
    Mamba2(Mamba2Config),
}

#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads, H.
    pub heads: usize,
    /// Heads of keys and values, G; divides H.
    pub groups: usize,
    /// Elements of a head, D.
    pub head: usize,
    /// Have the projections to queries, keys and values a bias?
    pub bias: bool,
    /// Has the projection back a bias?
    pub out_bias: bool,
    /// Are queries and keys normed, all heads of a token together?
    pub norm: bool,
    /// Queries, keys and values are cut off at ± this.
    pub clip: Option<f64>,
    /// What q·k is multiplied with.
    pub scale: f64,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// Of every layer, how many keys a query sees, its own included; none: all.
    pub windows: Vec<Option<usize>>,
    pub rotary: Option<RotaryConfig>,
}

/// A selective state space (Dao and Gu 2024), after a short convolution and under a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mamba2Config {
    /// Heads, H.
    pub heads: usize,
    /// Elements of a head, P.
    pub head: usize,
    /// Length of the state of each of them, S.
    pub state: usize,
    /// Groups of heads that share what is written and read, and that the gated norm norms by themselves, G; divides H.
    pub groups: usize,
    /// How many tokens, its own included, the convolution sees.
    pub kernel: usize,
    /// Have the projections in and out a bias?
    pub bias: bool,
    /// Has the convolution a bias?
    pub conv_bias: bool,
    /// Smallest and largest time step; the second may be infinite.
    pub steps: (f64, f64),
}

/// Rotary positions: element i of a head turns by `position · θ^(−2i/D)` together with element i + D/2.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryConfig {
    /// θ.
    pub base: f64,
    pub scaling: RotaryScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RotaryScaling {
    None,
    /// Every frequency divided by a factor.
    Linear {
        factor: f64,
    },
    /// Each frequency divided by a factor of its own.
    Factors(Vec<f32>),
    /// Llama 3.1: low frequencies divided by a factor, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_context: f64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpConfig {
    /// Width of its hidden layer.
    pub inner: usize,
    pub bias: bool,
    pub kind: MlpKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// `down(activation(gate(x)) · up(x))`.
    Gated(Activation),
    /// `down(gelu(up(x)))`, GELU in its tanh form.
    Gelu,
}

impl Config {
    /// Attention heads; none in a model without attention.
    pub fn heads(&self) -> Option<usize> {
        match &self.mixer {
            MixerConfig::Attention(attention) => Some(attention.heads),
            MixerConfig::Mamba2(_) => None,
        }
    }

    /// Where the activations of a block can be seen and replaced, in the order of the pass.
    pub fn points(&self) -> &'static [BlockPoint] {
        match self.mixer {
            MixerConfig::Attention(_) => &BlockPoint::TRANSFORMER,
            MixerConfig::Mamba2(_) => &BlockPoint::MAMBA2,
        }
    }

    /// Its attention; none in a model without.
    pub(crate) fn attention_mut(&mut self) -> Option<&mut AttentionConfig> {
        match &mut self.mixer {
            MixerConfig::Attention(attention) => Some(attention),
            MixerConfig::Mamba2(_) => None,
        }
    }
}
