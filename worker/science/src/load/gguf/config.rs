//! A GGUF file's metadata as the `config.json` of the checkpoint that it was made from. Errors are reasons, without the
//! path.

use super::{Arch, metadata::Metadata};
use serde_json::{Value, json};

/// What only the tensors tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensors {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// No `output.weight`: the embedding is used.
    pub tied: bool,
    /// `attn_q.bias` and its like.
    pub attention_bias: bool,
    /// `ffn_up.bias` and its like.
    pub mlp_bias: bool,
    /// `ssm_conv1d.bias`.
    pub conv_bias: bool,
}

/// The configuration as transformers 5 writes it. Rotation factors by tensor (`rope_freqs.weight`) are not in it.
pub fn config(arch: Arch, metadata: Metadata<'_>, tensors: Tensors) -> Result<Value, String> {
    let mut config = match arch {
        Arch::Gpt2 => gpt2(metadata)?,
        Arch::Mamba2 => mamba2(metadata, tensors)?,
        Arch::Llama | Arch::Gemma2 | Arch::Olmo | Arch::Olmo2 => rotating(arch, metadata, tensors)?,
    };
    let common = json!({
        "model_type": arch.as_str(),
        "vocab_size": tensors.vocabulary,
        "tie_word_embeddings": tensors.tied,
    });
    extend(&mut config, common);
    Ok(config)
}

fn extend(config: &mut Value, more: Value) {
    if let (Value::Object(config), Value::Object(more)) = (config, more) {
        config.extend(more);
    }
}

/// The decoders with rotary positions.
fn rotating(arch: Arch, metadata: Metadata<'_>, tensors: Tensors) -> Result<Value, String> {
    let width = metadata.count(".embedding_length")?;
    let heads = metadata.count_of_layers(".attention.head_count")?.ok_or("does not say how many heads it has")?;
    if heads == 0 || !width.is_multiple_of(heads) && !metadata.has(".attention.key_length") {
        return Err(format!("has {heads} heads at width {width}"));
    }
    let head_dim = match metadata.count_of_layers(".attention.key_length")? {
        Some(dim) => dim,
        None => metadata.count_if(".rope.dimension_count")?.unwrap_or(width / heads),
    };
    let mut config = json!({
        "hidden_size": width,
        "num_hidden_layers": metadata.count(".block_count")?,
        "intermediate_size": metadata.count_of_layers(".feed_forward_length")?.ok_or("does not say how wide its MLP is")?,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count_of_layers(".attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.count(".context_length")?,
        "rope_parameters": rope(metadata)?,
        "attention_bias": tensors.attention_bias,
        "mlp_bias": tensors.mlp_bias,
        "hidden_act": "silu",
    });
    let own = match arch {
        Arch::Gemma2 => gemma2(metadata, width, heads, head_dim)?,
        Arch::Olmo => json!({ "clip_qkv": metadata.number_if(".attention.clamp_kqv")?.filter(|c| *c > 0.0) }),
        _ if metadata.count_if(".attention.sliding_window")?.is_some_and(|w| w > 0) => {
            return Err("has a sliding window, which is known of Gemma-2 only (an OLMo-3 model?)".into());
        }
        _ => json!({ "rms_norm_eps": metadata.number(".attention.layer_norm_rms_epsilon")? }),
    };
    extend(&mut config, own);
    Ok(config)
}

fn rope(metadata: Metadata<'_>) -> Result<Value, String> {
    let theta = metadata.number_if(".rope.freq_base")?.unwrap_or(10_000.0);
    // Files from before the scaling had a name have only the inverse of a linear one.
    let kind = metadata.text_if(".rope.scaling.type")?;
    let legacy = metadata.number_if(".rope.scale_linear")?;
    let factor = metadata.number_if(".rope.scaling.factor")?.or(legacy).filter(|f| *f != 0.0);
    match (kind, factor) {
        (None | Some("none") | Some("linear"), None | Some(1.0)) | (Some("none"), _) => {
            Ok(json!({ "rope_type": "default", "rope_theta": theta }))
        }
        (None | Some("linear"), Some(factor)) => {
            Ok(json!({ "rope_type": "linear", "rope_theta": theta, "factor": factor }))
        }
        (Some(kind), _) => Err(format!("scales its rotary positions by `{kind}`; supported are none and linear")),
    }
}

fn gemma2(metadata: Metadata<'_>, width: usize, heads: usize, head_dim: usize) -> Result<Value, String> {
    // The scale of queries is in no key. llama.cpp knows the 27B model, the only one that has another, by its depth.
    let scale = if metadata.count(".block_count")? == 46 { width / heads } else { head_dim };
    Ok(json!({
        "rms_norm_eps": metadata.number(".attention.layer_norm_rms_epsilon")?,
        "query_pre_attn_scalar": scale,
        "attn_logit_softcapping": metadata.number_if(".attn_logit_softcapping")?.unwrap_or(50.0),
        "final_logit_softcapping": metadata.number_if(".final_logit_softcapping")?.unwrap_or(30.0),
        "sliding_window": metadata.count_if(".attention.sliding_window")?.unwrap_or(4096),
        "hidden_activation": "gelu_pytorch_tanh",
    }))
}

fn gpt2(metadata: Metadata<'_>) -> Result<Value, String> {
    Ok(json!({
        "n_embd": metadata.count(".embedding_length")?,
        "n_layer": metadata.count(".block_count")?,
        "n_head": metadata.count(".attention.head_count")?,
        "n_inner": metadata.count(".feed_forward_length")?,
        "n_positions": metadata.count(".context_length")?,
        "layer_norm_epsilon": metadata.number(".attention.layer_norm_epsilon")?,
        "activation_function": "gelu_new",
    }))
}

fn mamba2(metadata: Metadata<'_>, tensors: Tensors) -> Result<Value, String> {
    let (width, inner) = (metadata.count(".embedding_length")?, metadata.count(".ssm.inner_size")?);
    let heads = metadata.count(".ssm.time_step_rank")?;
    if width == 0 || heads == 0 || !inner.is_multiple_of(heads) || !inner.is_multiple_of(width) {
        return Err(format!("has {heads} heads and {inner} inner channels at width {width}"));
    }
    Ok(json!({
        "hidden_size": width,
        "num_hidden_layers": metadata.count(".block_count")?,
        "num_heads": heads,
        "head_dim": inner / heads,
        "expand": inner / width,
        "state_size": metadata.count(".ssm.state_size")?,
        "n_groups": metadata.count_if(".ssm.group_count")?.unwrap_or(1),
        "conv_kernel": metadata.count(".ssm.conv_kernel")?,
        "layer_norm_epsilon": metadata.number(".attention.layer_norm_rms_epsilon")?,
        "use_bias": false,
        "use_conv_bias": tensors.conv_bias,
        "hidden_act": "silu",
    }))
}
