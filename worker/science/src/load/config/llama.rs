//! Llama and the architectures that grew from it: Gemma-2, OLMo and OLMo-2 in HuggingFace's layout.

use super::fields::Fields;
use crate::{
    load::{LoadError, names::Layout},
    model::language::{
        AttentionConfig, Config, Embedding, MixerConfig, MlpConfig, MlpKind, NormConfig, NormKind, Placement,
        Unembedding,
    },
};

/// Llama (Touvron et al. 2023, Grattafiori et al. 2024): every key that the others share is read here.
pub(super) fn llama(fields: &Fields<'_>) -> Result<(Config, Layout), LoadError> {
    let layers = fields.required("num_hidden_layers")?;
    let (width, heads): (usize, usize) = (fields.required("hidden_size")?, fields.required("num_attention_heads")?);
    let context = fields.or("max_position_embeddings", 2048)?;
    let bias = fields.or("attention_bias", false)?;
    let head = fields.or("head_dim", width / heads.max(1))?;
    let attention = AttentionConfig {
        heads,
        groups: fields.or("num_key_value_heads", heads)?,
        head,
        bias,
        out_bias: bias,
        norm: false,
        clip: None,
        scale: (head as f64).powf(-0.5),
        softcap: None,
        windows: vec![None; layers],
        rotary: Some(fields.rotary(context)?),
    };
    let mlp = MlpConfig {
        inner: fields.required("intermediate_size")?,
        bias: fields.or("mlp_bias", false)?,
        kind: MlpKind::Gated(fields.activation("hidden_act", "silu")?),
    };
    let config = Config {
        arch: "llama",
        layers,
        width,
        vocabulary: fields.required("vocab_size")?,
        context: Some(context),
        embedding: Embedding { scale: None, positions: false },
        norm: NormConfig { kind: NormKind::Rms, epsilon: fields.or("rms_norm_eps", 1e-6)? },
        placement: Placement::Before,
        mixer: MixerConfig::Attention(attention),
        mlp: Some(mlp),
        unembedding: Unembedding { tied: fields.or("tie_word_embeddings", false)?, softcap: None },
    };
    Ok((config, Layout::Llama))
}

/// OLMo (Groeneveld et al. 2024): layer norm without parameters; queries, keys and values are clipped.
pub(super) fn olmo(fields: &Fields<'_>) -> Result<(Config, Layout), LoadError> {
    let (mut config, layout) = llama(fields)?;
    config.arch = "olmo";
    config.norm = NormConfig { kind: NormKind::LayerPlain, epsilon: 1e-5 };
    let clip = fields.optional("clip_qkv")?;
    if let Some(attention) = config.attention_mut() {
        attention.clip = clip;
    }
    Ok((config, layout))
}

/// OLMo-2 (OLMo team 2025): norms after attention and MLP, and of queries and keys.
pub(super) fn olmo2(fields: &Fields<'_>) -> Result<(Config, Layout), LoadError> {
    let (mut config, layout) = llama(fields)?;
    config.arch = "olmo2";
    config.norm.epsilon = fields.or("rms_norm_eps", 1e-5)?;
    config.placement = Placement::After;
    if let Some(attention) = config.attention_mut() {
        attention.norm = true;
    }
    Ok((config, layout))
}

/// Gemma-2 (Gemma team 2024): soft caps, a sliding window in every other layer, norms before and after.
pub(super) fn gemma2(fields: &Fields<'_>) -> Result<(Config, Layout), LoadError> {
    fields.only("use_bidirectional_attention", false)?;
    let (mut config, layout) = llama(fields)?;
    config.arch = "gemma2";
    config.context = Some(fields.or("max_position_embeddings", 8192)?);
    config.embedding.scale = Some((config.width as f64).sqrt());
    config.norm.kind = NormKind::RmsPlusOne;
    config.placement = Placement::Both;
    config.unembedding = Unembedding {
        tied: fields.or("tie_word_embeddings", true)?,
        softcap: capped(fields, "final_logit_softcapping", 30.0)?,
    };
    if let Some(mlp) = &mut config.mlp {
        mlp.kind = MlpKind::Gated(fields.activation("hidden_activation", "gelu_pytorch_tanh")?);
    }
    let windows = windows(fields, config.layers)?;
    if let Some(attention) = config.attention_mut() {
        attention.head = fields.or("head_dim", 256)?;
        attention.groups = fields.or("num_key_value_heads", 4)?;
        attention.scale = fields.or("query_pre_attn_scalar", 256.0_f64)?.powf(-0.5);
        attention.softcap = capped(fields, "attn_logit_softcapping", 50.0)?;
        attention.windows = windows;
    }
    Ok((config, layout))
}

/// A soft cap: `null` means none, but a key that is not there means the architecture's own.
fn capped(fields: &Fields<'_>, key: &str, default: f64) -> Result<Option<f64>, LoadError> {
    if fields.is_null(key) { Ok(None) } else { Ok(Some(fields.or(key, default)?)) }
}

/// How many keys the queries of each layer see.
fn windows(fields: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>, LoadError> {
    let window = if fields.is_null("sliding_window") { None } else { Some(fields.or("sliding_window", 4096)?) };
    let Some(types) = fields.optional::<Vec<String>>("layer_types")? else {
        return Ok((0..layers).map(|i| window.filter(|_| i % 2 == 0)).collect());
    };
    let of = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(window),
        "full_attention" => Ok(None),
        other => {
            Err(fields.bad(format!("`layer_types` has `{other}`; known are sliding_attention and full_attention")))
        }
    };
    types.iter().map(of).collect()
}
