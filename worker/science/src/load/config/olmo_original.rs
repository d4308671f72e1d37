//! OLMo-1 as its authors' own code wrote it (`hf_olmo`), which is how its pretraining checkpoints are published.

use super::fields::Fields;
use crate::{
    load::{LoadError, names::Layout},
    model::language::{
        AttentionConfig, Config, Embedding, MixerConfig, MlpConfig, MlpKind, NormConfig, NormKind, Placement,
        RotaryConfig, RotaryScaling, Unembedding,
    },
};
use taskvec_kernels::Activation;

pub(super) fn read(fields: &Fields<'_>) -> Result<(Config, Layout), LoadError> {
    only_what_olmo_1_has(fields)?;
    let (layers, width): (usize, usize) = (fields.required("n_layers")?, fields.required("d_model")?);
    let bias = fields.or("include_bias", true)?;
    let vocabulary = if fields.has("embedding_size") { "embedding_size" } else { "vocab_size" };
    let config = Config {
        arch: "olmo",
        layers,
        width,
        vocabulary: fields.required(vocabulary)?,
        context: Some(fields.or("max_sequence_length", 1024)?),
        embedding: Embedding { scale: None, positions: false },
        norm: NormConfig { kind: NormKind::LayerPlain, epsilon: fields.or("layer_norm_eps", 1e-5)? },
        placement: Placement::Before,
        mixer: MixerConfig::Attention(attention(fields, layers, width, bias)?),
        mlp: Some(MlpConfig { inner: inner(fields, width)?, bias, kind: MlpKind::Gated(Activation::Silu) }),
        unembedding: Unembedding { tied: fields.or("weight_tying", true)?, softcap: None },
    };
    Ok((config, Layout::OlmoOriginal))
}

fn attention(fields: &Fields<'_>, layers: usize, width: usize, bias: bool) -> Result<AttentionConfig, LoadError> {
    let heads: usize = fields.required("n_heads")?;
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(fields.bad(format!("`d_model` {width} is not a multiple of `n_heads` {heads}")));
    }
    let groups = match fields.optional("n_kv_heads")? {
        Some(groups) => groups,
        None if fields.or("multi_query_attention", false)? => 1,
        None => heads,
    };
    let head = width / heads;
    Ok(AttentionConfig {
        heads,
        groups,
        head,
        bias,
        out_bias: bias,
        norm: false,
        clip: fields.optional("clip_qkv")?,
        scale: (head as f64).powf(-0.5),
        softcap: None,
        windows: vec![None; layers],
        rotary: Some(RotaryConfig { base: fields.or("rope_theta", 10_000.0)?, scaling: RotaryScaling::None }),
    })
}

/// Width of the gate, and of the value beside it: the file has the width of both together.
fn inner(fields: &Fields<'_>, width: usize) -> Result<usize, LoadError> {
    let both = match fields.optional::<usize>("mlp_hidden_size")? {
        Some(both) => both,
        None => fields.or("mlp_ratio", 4)? * width,
    };
    Ok(both / 2)
}

/// The code had many switches; these are the positions in which the published models have them.
fn only_what_olmo_1_has(fields: &Fields<'_>) -> Result<(), LoadError> {
    fields.only("block_type", "sequential".to_owned())?;
    fields.only("activation_type", "swiglu".to_owned())?;
    fields.only("layer_norm_type", "default".to_owned())?;
    fields.only("rope", true)?;
    let off = [
        "alibi",
        "layer_norm_with_affine",
        "attention_layer_norm",
        "scale_logits",
        "embedding_layer_norm",
        "norm_after",
    ];
    for switch in off {
        fields.only(switch, false)?;
    }
    // Where these are not said, that code has them the other way round.
    for key in ["rope", "layer_norm_with_affine"] {
        if !fields.has(key) {
            return Err(fields.bad(format!("lacks `{key}`, without which this is no OLMo-1")));
        }
    }
    Ok(())
}
