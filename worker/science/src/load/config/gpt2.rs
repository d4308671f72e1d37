//! GPT-2 (Radford et al. 2019).

use super::fields::Fields;
use crate::{
    load::{LoadError, names::Layout},
    model::language::{
        AttentionConfig, Config, Embedding, MixerConfig, MlpConfig, MlpKind, NormConfig, NormKind, Placement,
        Unembedding,
    },
};
use taskvec_kernels::Activation;

pub(super) fn read(fields: &Fields<'_>) -> Result<(Config, Layout), LoadError> {
    fields.only("scale_attn_weights", true)?;
    fields.only("scale_attn_by_inverse_layer_idx", false)?;
    fields.only("add_cross_attention", false)?;
    if fields.activation("activation_function", "gelu_new")? != Activation::GeluTanh {
        return Err(fields.bad("`activation_function` is not gelu_new; only models with it are built here"));
    }
    let (layers, width): (usize, usize) = (fields.required("n_layer")?, fields.required("n_embd")?);
    let heads: usize = fields.required("n_head")?;
    if heads == 0 || width % heads != 0 {
        return Err(fields.bad(format!("`n_embd` {width} is not a multiple of `n_head` {heads}")));
    }
    let attention = AttentionConfig {
        heads,
        groups: heads,
        head: width / heads,
        bias: true,
        out_bias: true,
        norm: false,
        clip: None,
        scale: ((width / heads) as f64).powf(-0.5),
        softcap: None,
        windows: vec![None; layers],
        rotary: None,
    };
    let config = Config {
        arch: "gpt2",
        layers,
        width,
        vocabulary: fields.required("vocab_size")?,
        context: Some(fields.or("n_positions", 1024)?),
        embedding: Embedding { scale: None, positions: true },
        norm: NormConfig { kind: NormKind::Layer, epsilon: fields.or("layer_norm_epsilon", 1e-5)? },
        placement: Placement::Before,
        mixer: MixerConfig::Attention(attention),
        mlp: Some(MlpConfig { inner: fields.or("n_inner", 4 * width)?, bias: true, kind: MlpKind::Gelu }),
        unembedding: Unembedding { tied: fields.or("tie_word_embeddings", true)?, softcap: None },
    };
    Ok((config, Layout::Gpt2))
}
