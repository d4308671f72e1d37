//! What llama.cpp calls the tensors of a model, and what its converter does to them, undone.

use super::Arch;
use candle_core::{Result, Tensor};

/// A tensor as the HuggingFace checkpoint has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub change: Change,
}

/// What the converter did to a tensor of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Nothing,
    /// The rows of each head were put into the order 0, D/2, 1, D/2 + 1, …, for a rotation of neighbours.
    Interleaved(Rows),
    /// 1 was added.
    OnePlus,
    /// `Conv1D`'s (inputs, outputs) became `nn.Linear`'s (outputs, inputs).
    Transposed,
    /// The middle one of (channels, 1, kernel) was left away.
    Squeezed,
    /// (n) became two dimensions.
    Folded,
    /// w (n) became −exp(w), with two dimensions.
    NegativeExponential,
}

/// Which heads the rows of a tensor belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    Queries,
    Keys,
}

impl Change {
    /// Shape of the checkpoint's tensor, of which the file has one of shape `stored`.
    pub fn shape(self, stored: &[usize]) -> Vec<usize> {
        match (self, stored) {
            (Self::Transposed, _) => stored.iter().rev().copied().collect(),
            (Self::Squeezed, [channels, kernel]) => vec![*channels, 1, *kernel],
            (Self::Folded | Self::NegativeExponential, _) => vec![stored.iter().product()],
            _ => stored.to_vec(),
        }
    }

    /// Are rows of the checkpoint's tensor made of the same rows of the stored one?
    pub fn keeps_rows(self) -> bool {
        matches!(self, Self::Nothing | Self::OnePlus | Self::Squeezed)
    }

    /// The checkpoint's tensor. `heads` is how many heads of a kind there are.
    pub fn undo(self, stored: Tensor, heads: impl Fn(Rows) -> usize) -> Result<Tensor> {
        let shape = self.shape(stored.dims());
        match self {
            Self::Nothing => Ok(stored),
            Self::Interleaved(of) => {
                let (rows, heads) = (stored.dim(0)?, heads(of));
                let rest = stored.elem_count() / rows;
                stored.reshape((heads, rows / heads / 2, 2, rest))?.transpose(1, 2)?.contiguous()?.reshape(shape)
            }
            Self::OnePlus => stored.affine(1.0, -1.0),
            Self::Transposed => stored.t()?.contiguous(),
            Self::Squeezed | Self::Folded => stored.reshape(shape),
            Self::NegativeExponential => stored.neg()?.log()?.reshape(shape),
        }
    }
}

/// Module of the file, module of the checkpoint, what was done to it.
type Row = (&'static str, &'static str, Change);

const ATTENTION: &[Row] = &[
    ("attn_v", "self_attn.v_proj", Change::Nothing),
    ("attn_output", "self_attn.o_proj", Change::Nothing),
    ("ffn_gate", "mlp.gate_proj", Change::Nothing),
    ("ffn_up", "mlp.up_proj", Change::Nothing),
    ("ffn_down", "mlp.down_proj", Change::Nothing),
];
const ROTATING_NEIGHBOURS: &[Row] = &[
    ("attn_q", "self_attn.q_proj", Change::Interleaved(Rows::Queries)),
    ("attn_k", "self_attn.k_proj", Change::Interleaved(Rows::Keys)),
];
const ROTATING_HALVES: &[Row] =
    &[("attn_q", "self_attn.q_proj", Change::Nothing), ("attn_k", "self_attn.k_proj", Change::Nothing)];
const LLAMA: &[Row] = &[
    ("token_embd", "model.embed_tokens", Change::Nothing),
    ("output_norm", "model.norm", Change::Nothing),
    ("output", "lm_head", Change::Nothing),
    ("attn_norm", "input_layernorm", Change::Nothing),
    ("ffn_norm", "post_attention_layernorm", Change::Nothing),
];
const GEMMA2: &[Row] = &[
    ("token_embd", "model.embed_tokens", Change::Nothing),
    ("output_norm", "model.norm", Change::OnePlus),
    ("attn_norm", "input_layernorm", Change::OnePlus),
    ("post_attention_norm", "post_attention_layernorm", Change::OnePlus),
    ("ffn_norm", "pre_feedforward_layernorm", Change::OnePlus),
    ("post_ffw_norm", "post_feedforward_layernorm", Change::OnePlus),
];
/// OLMo's norms have no parameters.
const OLMO: &[Row] = &[("token_embd", "model.embed_tokens", Change::Nothing), ("output", "lm_head", Change::Nothing)];
const OLMO2: &[Row] = &[
    ("token_embd", "model.embed_tokens", Change::Nothing),
    ("output_norm", "model.norm", Change::Nothing),
    ("output", "lm_head", Change::Nothing),
    ("attn_q_norm", "self_attn.q_norm", Change::Nothing),
    ("attn_k_norm", "self_attn.k_norm", Change::Nothing),
    ("post_attention_norm", "post_attention_layernorm", Change::Nothing),
    ("post_ffw_norm", "post_feedforward_layernorm", Change::Nothing),
];
const GPT2: &[Row] = &[
    ("token_embd", "transformer.wte", Change::Nothing),
    ("position_embd", "transformer.wpe", Change::Nothing),
    ("output_norm", "transformer.ln_f", Change::Nothing),
    ("output", "lm_head", Change::Nothing),
    ("attn_norm", "ln_1", Change::Nothing),
    ("attn_qkv", "attn.c_attn", Change::Transposed),
    ("attn_output", "attn.c_proj", Change::Transposed),
    ("ffn_norm", "ln_2", Change::Nothing),
    ("ffn_up", "mlp.c_fc", Change::Transposed),
    ("ffn_down", "mlp.c_proj", Change::Transposed),
];
const MAMBA2: &[Row] = &[
    ("token_embd", "backbone.embeddings", Change::Nothing),
    ("output_norm", "backbone.norm_f", Change::Nothing),
    ("output", "lm_head", Change::Nothing),
    ("attn_norm", "norm", Change::Nothing),
    ("ssm_in", "mixer.in_proj", Change::Nothing),
    ("ssm_conv1d", "mixer.conv1d", Change::Squeezed),
    ("ssm_norm", "mixer.norm", Change::Folded),
    ("ssm_out", "mixer.out_proj", Change::Nothing),
];
/// Those whose whole name is another: file, checkpoint, what was done.
const MAMBA2_PARAMETERS: &[Row] = &[
    ("ssm_a", "mixer.A_log", Change::NegativeExponential),
    ("ssm_d", "mixer.D", Change::Folded),
    ("ssm_dt.bias", "mixer.dt_bias", Change::Nothing),
];

fn modules(arch: Arch) -> [&'static [Row]; 3] {
    match arch {
        Arch::Llama => [LLAMA, ATTENTION, ROTATING_NEIGHBOURS],
        Arch::Olmo => [OLMO, ATTENTION, ROTATING_NEIGHBOURS],
        Arch::Gemma2 => [GEMMA2, ATTENTION, ROTATING_HALVES],
        Arch::Olmo2 => [OLMO2, ATTENTION, ROTATING_HALVES],
        Arch::Gpt2 => [GPT2, &[], &[]],
        Arch::Mamba2 => [MAMBA2, &[], &[]],
    }
}

/// The checkpoint's name of a tensor of a file; none where the architecture has no such tensor.
pub fn named(arch: Arch, stored: &str) -> Option<Named> {
    let (prefix, rest) = match stored.strip_prefix("blk.").and_then(|s| s.split_once('.')) {
        None => (String::new(), stored),
        Some((block, rest)) => {
            let blocks = match arch {
                Arch::Gpt2 => "transformer.h",
                Arch::Mamba2 => "backbone.layers",
                Arch::Llama | Arch::Gemma2 | Arch::Olmo | Arch::Olmo2 => "model.layers",
            };
            (format!("{blocks}.{}.", block.parse::<usize>().ok()?), rest)
        }
    };
    let whole = if arch == Arch::Mamba2 { MAMBA2_PARAMETERS } else { &[] };
    if let Some((_, name, change)) = whole.iter().find(|(file, ..)| *file == rest) {
        return Some(Named { name: format!("{prefix}{name}"), change: *change });
    }
    let (module, kind) = rest.split_once('.')?;
    let (_, name, change) = modules(arch).into_iter().flatten().find(|(file, ..)| *file == module)?;
    // Biases keep their only dimension, except that a head's are in the order of its rows.
    let change = match (kind, change) {
        ("weight", change) | ("bias", change @ Change::Interleaved(_)) => *change,
        ("bias", _) => Change::Nothing,
        _ => return None,
    };
    Some(Named { name: format!("{prefix}{name}.{kind}"), change })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_checkpoint() {
        let named = |arch, stored| named(arch, stored).map(|n| (n.name, n.change));
        let is = |name: &str, change| Some((name.to_owned(), change));
        assert_eq!(
            named(Arch::Llama, "blk.12.attn_k.weight"),
            is("model.layers.12.self_attn.k_proj.weight", Change::Interleaved(Rows::Keys))
        );
        assert_eq!(
            named(Arch::Olmo2, "blk.0.attn_k.weight"),
            is("model.layers.0.self_attn.k_proj.weight", Change::Nothing)
        );
        assert_eq!(named(Arch::Gemma2, "output_norm.weight"), is("model.norm.weight", Change::OnePlus));
        assert_eq!(named(Arch::Gpt2, "blk.1.ffn_up.weight"), is("transformer.h.1.mlp.c_fc.weight", Change::Transposed));
        assert_eq!(named(Arch::Gpt2, "blk.1.ffn_up.bias"), is("transformer.h.1.mlp.c_fc.bias", Change::Nothing));
        assert_eq!(
            named(Arch::Mamba2, "blk.3.ssm_a"),
            is("backbone.layers.3.mixer.A_log", Change::NegativeExponential)
        );
        assert_eq!(named(Arch::Mamba2, "blk.3.ssm_dt.bias"), is("backbone.layers.3.mixer.dt_bias", Change::Nothing));
        for unknown in ["blk.0.ffn_gate_inp.weight", "blk.x.attn_q.weight", "blk.0.attn_q.scale", "output", "ssm_a"] {
            assert_eq!(named(Arch::Llama, unknown), None, "{unknown}");
        }
        assert_eq!(named(Arch::Olmo, "output_norm.weight"), None);
    }

    #[test]
    fn interleaved_rows_come_back_in_order() {
        // Two heads of four rows; llama.cpp stores rows 0, 2, 1, 3 of each.
        let rows = |order: [f32; 8]| Tensor::new(&order, &candle_core::Device::Cpu).unwrap().reshape((8, 1)).unwrap();
        let stored = rows([0., 2., 1., 3., 4., 6., 5., 7.]);
        let undone = Change::Interleaved(Rows::Queries).undo(stored, |_| 2).unwrap();
        assert_eq!(undone.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);
    }
}
