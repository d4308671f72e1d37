//! What checkpoints call the parameters of a model.

use crate::model::language::{AttentionConfig, Config, MlpConfig, Placement, Projection};
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// HuggingFace's Llama; Gemma-2, OLMo and OLMo-2 are named alike.
    Llama,
    /// GPT-2: queries, keys and values in one tensor; weights are (inputs, outputs).
    Gpt2,
    /// OLMo-1 as its authors wrote it: queries, keys and values in one tensor, value and gate of the MLP in another.
    OlmoOriginal,
    /// Mamba-2, as HuggingFace and its authors write it.
    Mamba2,
}

/// A norm of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormSite {
    BeforeMixer,
    AfterMixer,
    BeforeMlp,
    AfterMlp,
    Queries,
    Keys,
}

/// Where a linear map is stored: in rows of a tensor (outputs, inputs), or columns of one that is (inputs, outputs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Without `.weight` or `.bias`.
    pub(super) name: String,
    pub(super) outputs: Range<usize>,
    /// Outputs of the whole tensor.
    pub(super) of: usize,
    pub(super) transposed: bool,
}

/// The names of one checkpoint.
pub(super) struct Names<'a> {
    layout: Layout,
    /// What comes before every name of the decoder: models saved without their head lack it.
    prefix: &'static str,
    /// Of the embedding, without the prefix.
    embedding: &'static str,
    config: &'a Config,
}

impl<'a> Names<'a> {
    /// `has` says whether the checkpoint has a tensor.
    pub(super) fn new(layout: Layout, config: &'a Config, has: impl Fn(&str) -> bool) -> Self {
        // The last is what names are taken to be where none of them is there.
        let known: &[(&str, &str)] = match layout {
            Layout::Llama => &[("", "embed_tokens"), ("model.", "embed_tokens")],
            Layout::Gpt2 => &[("", "wte"), ("transformer.", "wte")],
            Layout::OlmoOriginal => &[("transformer.", "wte"), ("model.transformer.", "wte")],
            // Its authors call the embedding in the singular.
            Layout::Mamba2 => &[("", "embeddings"), ("backbone.", "embedding"), ("backbone.", "embeddings")],
        };
        let named = |&(prefix, embedding)| Self { layout, prefix, embedding, config };
        let mut names = known.iter().map(named);
        let (last, found) = (known[known.len() - 1], names.find(|names| has(&names.embedding())));
        found.unwrap_or_else(|| named(&last))
    }

    pub(super) fn embedding(&self) -> String {
        format!("{}{}.weight", self.prefix, self.embedding)
    }

    pub(super) fn positions(&self) -> String {
        format!("{}wpe.weight", self.prefix)
    }

    pub(super) fn final_norm(&self) -> String {
        let name = match self.layout {
            Layout::Llama => "norm",
            Layout::Gpt2 | Layout::OlmoOriginal => "ln_f",
            Layout::Mamba2 => "norm_f",
        };
        format!("{}{name}", self.prefix)
    }

    /// Without `.weight` or `.bias`.
    pub(super) fn unembedding(&self) -> String {
        match self.layout {
            Layout::OlmoOriginal => format!("{}ff_out", self.prefix),
            Layout::Llama | Layout::Gpt2 | Layout::Mamba2 => "lm_head".to_owned(),
        }
    }

    fn block(&self, block: usize) -> String {
        format!("{}{block}", self.blocks())
    }

    /// What the names of all tensors in blocks begin with, before the number.
    fn blocks(&self) -> String {
        let name = match self.layout {
            Layout::Llama | Layout::Mamba2 => "layers",
            Layout::Gpt2 => "h",
            Layout::OlmoOriginal => "blocks",
        };
        format!("{}{name}.", self.prefix)
    }

    /// The block that a tensor belongs to.
    pub(super) fn block_of(&self, name: &str) -> Option<usize> {
        let rest = name.strip_prefix(self.blocks().as_str())?;
        rest.split_once('.')?.0.parse().ok()
    }

    pub(super) fn norm(&self, block: usize, site: NormSite) -> String {
        let name = match (self.layout, site) {
            (_, NormSite::Queries) => "self_attn.q_norm",
            (_, NormSite::Keys) => "self_attn.k_norm",
            (Layout::Gpt2, NormSite::BeforeMixer) => "ln_1",
            (Layout::Gpt2, _) => "ln_2",
            (Layout::Mamba2, _) => "norm",
            (_, NormSite::BeforeMixer) => "input_layernorm",
            (_, NormSite::AfterMixer) => "post_attention_layernorm",
            // Llama calls the norm before its MLP by what it comes after.
            (_, NormSite::BeforeMlp) if self.config.placement == Placement::Before => "post_attention_layernorm",
            (_, NormSite::BeforeMlp) => "pre_feedforward_layernorm",
            (_, NormSite::AfterMlp) => "post_feedforward_layernorm",
        };
        format!("{}.{name}", self.block(block))
    }

    /// A projection of the attention.
    pub(super) fn attention(
        &self,
        block: usize,
        projection: Projection,
        attention: &AttentionConfig,
        outputs: usize,
    ) -> Stored {
        let block = self.block(block);
        match (self.layout, projection) {
            (Layout::Llama | Layout::Mamba2, _) => Stored::whole(format!("{block}.self_attn.{projection}"), outputs),
            (Layout::OlmoOriginal, Projection::Out) => Stored::whole(format!("{block}.attn_out"), outputs),
            (Layout::OlmoOriginal, _) => fused_attention(format!("{block}.att_proj"), projection, attention),
            (Layout::Gpt2, Projection::Out) => Stored::whole(format!("{block}.attn.c_proj"), outputs).transposed(),
            (Layout::Gpt2, _) => fused_attention(format!("{block}.attn.c_attn"), projection, attention).transposed(),
        }
    }

    /// A parameter of a Mamba-2 mixer.
    pub(super) fn mamba2(&self, block: usize, parameter: &str) -> String {
        format!("{}.mixer.{parameter}", self.block(block))
    }

    /// A projection of Mamba-2's mixer.
    pub(super) fn mamba2_projection(&self, block: usize, projection: Projection, outputs: usize) -> Stored {
        Stored::whole(self.mamba2(block, projection.as_str()), outputs)
    }

    /// A projection of the MLP.
    pub(super) fn mlp(&self, block: usize, projection: Projection, mlp: &MlpConfig, outputs: usize) -> Stored {
        let block = self.block(block);
        match (self.layout, projection) {
            (Layout::Llama | Layout::Mamba2, _) => Stored::whole(format!("{block}.mlp.{projection}"), outputs),
            (Layout::OlmoOriginal, Projection::Down) => Stored::whole(format!("{block}.ff_out"), outputs),
            (Layout::OlmoOriginal, _) => {
                // The gate is the second half.
                let from = if projection == Projection::Gate { mlp.inner } else { 0 };
                let outputs = from..from + mlp.inner;
                Stored { name: format!("{block}.ff_proj"), outputs, of: 2 * mlp.inner, transposed: false }
            }
            (Layout::Gpt2, Projection::Down) => Stored::whole(format!("{block}.mlp.c_proj"), outputs).transposed(),
            (Layout::Gpt2, _) => Stored::whole(format!("{block}.mlp.c_fc"), outputs).transposed(),
        }
    }

    /// Tensors that checkpoints carry along and that compute nothing: tables, masks, and a second copy of tied weights.
    pub(super) fn is_harmless(&self, name: &str) -> bool {
        let mask = self.layout == Layout::Gpt2 && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"));
        let copy = self.config.unembedding.tied && name == format!("{}.weight", self.unembedding());
        mask || copy || name.ends_with(".rotary_emb.inv_freq")
    }
}

impl Stored {
    fn whole(name: String, outputs: usize) -> Self {
        Self { name, outputs: 0..outputs, of: outputs, transposed: false }
    }

    fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }
}

/// Queries, keys and values one after the other.
fn fused_attention(name: String, projection: Projection, attention: &AttentionConfig) -> Stored {
    let (q, kv) = (attention.heads * attention.head, attention.groups * attention.head);
    let outputs = match projection {
        Projection::K => q..q + kv,
        Projection::V => q + kv..q + 2 * kv,
        _ => 0..q,
    };
    Stored { name, outputs, of: q + 2 * kv, transposed: false }
}
