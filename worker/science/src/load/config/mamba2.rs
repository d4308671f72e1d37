//! Mamba-2 (Dao and Gu 2024).

use super::{fields::Fields, special};
use crate::{
    load::{LoadError, names::Layout},
    model::language::{Config, Embedding, Mamba2Config, MixerConfig, NormConfig, NormKind, Placement, Unembedding},
};
use serde_json::{Map, Value};
use taskvec_kernels::Activation;

/// As HuggingFace writes it. `norm_before_gate`, `rms_norm` and `chunk_size` are not read: transformers gates first and
/// then norms, whatever the first two say, and the third changes nothing but speed.
pub(super) fn read(fields: &Fields<'_>) -> Result<(Config, Layout), LoadError> {
    let width: usize = fields.or("hidden_size", 4096)?;
    let mamba2 = Mamba2Config {
        heads: fields.or("num_heads", 128)?,
        head: fields.or("head_dim", 64)?,
        state: fields.or("state_size", 128)?,
        groups: fields.or("n_groups", 8)?,
        kernel: fields.or("conv_kernel", 4)?,
        bias: fields.or("use_bias", false)?,
        conv_bias: fields.or("use_conv_bias", true)?,
        steps: steps(fields, "time_step_limit")?,
    };
    // It is in f32 always.
    let _: bool = fields.or("residual_in_fp32", true)?;
    let expand: f64 = fields.or("expand", 2.0)?;
    if width as f64 * expand != (mamba2.heads * mamba2.head) as f64 {
        return Err(fields.bad(format!(
            "`hidden_size` {width} times `expand` {expand} is not `num_heads` {} times `head_dim` {}",
            mamba2.heads, mamba2.head
        )));
    }
    if fields.activation("hidden_act", "silu")? != Activation::Silu {
        return Err(fields.bad("`hidden_act` is not silu; only models with it are built here"));
    }
    let norm = NormConfig { kind: NormKind::Rms, epsilon: fields.or("layer_norm_epsilon", 1e-5)? };
    let (layers, vocabulary) = (fields.or("num_hidden_layers", 64)?, fields.or("vocab_size", 32_768)?);
    Ok((config(mamba2, [layers, width, vocabulary], norm, fields.or("tie_word_embeddings", false)?), Layout::Mamba2))
}

/// As the code of its authors writes it (`mamba_ssm`).
pub(super) fn read_original(fields: &Fields<'_>) -> Result<(Config, Layout), LoadError> {
    for (key, wanted) in [("d_intermediate", 0), ("attn_layer_idx", 0)] {
        let found = match fields.optional::<Value>(key)? {
            Some(Value::Array(layers)) => layers.len() as u64,
            Some(number) => number.as_u64().unwrap_or(1),
            None => 0,
        };
        if found != wanted {
            return Err(fields.bad(format!(
                "`{key}` is there; models that mix Mamba-2 with attention or an MLP are not built here"
            )));
        }
    }
    fields.only("rms_norm", true)?;
    let own: Map<String, Value> = fields.required("ssm_cfg")?;
    let inner = fields.inner(&own);
    let layer: String = inner.or("layer", "Mamba1".to_owned())?;
    if layer != "Mamba2" {
        return Err(fields.bad(format!("`ssm_cfg.layer` is {layer}; only Mamba2 is built here")));
    }
    inner.only("rmsnorm", true)?;
    inner.only("norm_before_gate", false)?;
    inner.only("D_has_hdim", false)?;
    let (width, head): (usize, usize) = (fields.required("d_model")?, inner.or("headdim", 64)?);
    let channels = width * inner.or("expand", 2_usize)?;
    inner.only("d_ssm", channels)?;
    let mamba2 = Mamba2Config {
        heads: channels / head.max(1),
        head,
        state: inner.or("d_state", 128)?,
        groups: inner.or("ngroups", 1)?,
        kernel: inner.or("d_conv", 4)?,
        bias: inner.or("bias", false)?,
        conv_bias: inner.or("conv_bias", true)?,
        steps: steps(&inner, "dt_limit")?,
    };
    let _: bool = fields.or("residual_in_fp32", true)?;
    let pad: usize = fields.or("pad_vocab_size_multiple", 8_usize)?;
    let vocabulary = fields.required::<usize>("vocab_size")?.next_multiple_of(pad.max(1));
    let norm = NormConfig { kind: NormKind::Rms, epsilon: fields.or("norm_epsilon", 1e-5)? };
    let tied = fields.or("tie_embeddings", true)?;
    Ok((config(mamba2, [fields.required("n_layer")?, width, vocabulary], norm, tied), Layout::Mamba2))
}

fn config(mamba2: Mamba2Config, [layers, width, vocabulary]: [usize; 3], norm: NormConfig, tied: bool) -> Config {
    Config {
        arch: "mamba2",
        layers,
        width,
        vocabulary,
        context: None,
        embedding: Embedding { scale: None, positions: false },
        norm,
        placement: Placement::Before,
        mixer: MixerConfig::Mamba2(mamba2),
        mlp: None,
        unembedding: Unembedding { tied, softcap: None },
    }
}

/// Smallest and largest step; where the key is not there, there are none.
fn steps(fields: &Fields<'_>, key: &str) -> Result<(f64, f64), LoadError> {
    let Some(limits) = fields.optional::<Vec<Value>>(key)? else { return Ok((0.0, f64::INFINITY)) };
    match limits.iter().map(special::number).collect::<Option<Vec<f64>>>().as_deref() {
        Some([low, high]) if low <= high => Ok((*low, *high)),
        _ => Err(fields.bad(format!("`{key}` is not two numbers, the smaller one first"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::of;
    use crate::{
        load::LoadError,
        model::language::{Config, MixerConfig},
    };
    use serde_json::{Value, json};
    use std::path::Path;

    fn read(json: Value) -> Result<Config, LoadError> {
        of(Path::new("config.json"), &json).map(|(config, _)| config)
    }

    fn with(mut json: Value, key: &str, value: Value) -> Value {
        json[key] = value;
        json
    }

    /// The sizes of Mamba-2 8B (Waleffe et al. 2024).
    fn large() -> Value {
        json!({
            "model_type": "mamba2", "hidden_size": 4096, "num_hidden_layers": 56, "num_heads": 128, "head_dim": 64,
            "n_groups": 8, "state_size": 128, "vocab_size": 256_000, "norm_before_gate": true, "chunk_size": 128,
            "tie_word_embeddings": false, "time_step_limit": [0.0, {"__float__": "Infinity"}]
        })
    }

    /// As published with the 2.7B model.
    fn original() -> Value {
        json!({
            "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50_277, "ssm_cfg": {"layer": "Mamba2"},
            "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
            "pad_vocab_size_multiple": 16, "tie_embeddings": true
        })
    }

    #[test]
    fn published_configurations_are_read() {
        let config = read(large()).unwrap();
        let MixerConfig::Mamba2(mamba2) = config.mixer else { panic!("{config:?}") };
        assert_eq!((config.layers, config.width, config.vocabulary, config.context), (56, 4096, 256_000, None));
        assert_eq!((mamba2.heads, mamba2.head, mamba2.groups, mamba2.state, mamba2.kernel), (128, 64, 8, 128, 4));
        assert!(!config.unembedding.tied && mamba2.conv_bias && !mamba2.bias);
        assert_eq!(mamba2.steps, (0.0, f64::INFINITY));

        let config = read(original()).unwrap();
        let MixerConfig::Mamba2(mamba2) = config.mixer else { panic!("{config:?}") };
        assert_eq!((config.layers, config.width, config.vocabulary, config.arch), (64, 2560, 50_288, "mamba2"));
        assert_eq!((mamba2.heads, mamba2.head, mamba2.groups, mamba2.state), (80, 64, 1, 128));
        assert!(config.unembedding.tied);
    }

    #[test]
    fn what_cannot_be_built_is_refused_by_name() {
        for (json, wanted) in [
            (with(large(), "num_heads", json!(100)), "times `head_dim` 64"),
            (with(large(), "n_groups", json!(3)), "3 groups"),
            (with(large(), "hidden_act", json!("gelu_new")), "`hidden_act`"),
            (with(large(), "time_step_limit", json!([1.0])), "`time_step_limit`"),
            (with(original(), "attn_layer_idx", json!([9, 18])), "`attn_layer_idx`"),
            (with(original(), "d_intermediate", json!(64)), "`d_intermediate`"),
            (with(original(), "ssm_cfg", json!({})), "Mamba1"),
            (with(original(), "ssm_cfg", json!({"layer": "Mamba2", "norm_before_gate": true})), "`norm_before_gate`"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
    }
}
