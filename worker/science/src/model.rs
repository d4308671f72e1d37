//! The transformer of the paper: GPT-2 blocks between a linear read-in and a linear read-out (Garg et al. 2022).
//!
//! Tokens (B, 2K, C) → read-in + learned positions → L pre-LN blocks → final norm → read-out: one prediction of y per x,
//! (B, K). Parameters are named and laid out as in HuggingFace's `GPT2Model` (`Conv1D` weights are (in, out)), and
//! `read_in` and `read_out` as in PyTorch's `nn.Linear` (weights are (out, in)).

mod init;
pub mod language;
mod reading;

use self::language::Rows;
use crate::hook::{BlockPoint, Hook, HookPoint, Visitor, reborrow};
use candle_core::{DType, Device, Result, Tensor, Var};
use taskvec_kernels::{Attend, Span, causal_attention, layer_norm, linear, linear_gelu, linear_residual};
use taskvec_model::spec::{DataSpec, ModelSpec};

pub(crate) const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Sizes of a model: they fix the names and shapes of its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// At least 1.
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    /// Tokens of a sequence, 2K.
    pub positions: usize,
    /// Channels of a token, C.
    pub channels: usize,
}

impl Sizes {
    pub fn new(model: &ModelSpec, data: &DataSpec) -> Self {
        let DataSpec::SparseLinear(data) = data;
        Self {
            layers: model.layers as usize,
            width: model.width as usize,
            heads: model.heads as usize,
            positions: 2 * data.examples as usize,
            channels: data.channels() as usize,
        }
    }
}

/// Weight and bias of a linear map or a norm.
pub(crate) struct Affine<P> {
    pub weight: P,
    pub bias: P,
}

pub(crate) struct Block<P> {
    pub ln_1: Affine<P>,
    pub c_attn: Affine<P>,
    pub attn_proj: Affine<P>,
    pub ln_2: Affine<P>,
    pub c_fc: Affine<P>,
    pub mlp_proj: Affine<P>,
}

/// The parameters of a model, as tensors or as something else.
pub(crate) struct Parameters<P> {
    pub read_in: Affine<P>,
    pub blocks: Vec<Block<P>>,
    pub ln_f: Affine<P>,
    pub read_out: Affine<P>,
    pub positions: P,
}

impl<P> Parameters<P> {
    /// `get(name, shape)` provides each, asked for in a fixed order.
    pub fn build<E>(
        sizes: Sizes,
        mut get: impl FnMut(&str, &[usize]) -> std::result::Result<P, E>,
    ) -> std::result::Result<Self, E> {
        let mut affine = |name: &str, weight: &[usize], outputs: usize| {
            let weight = get(&format!("{name}.weight"), weight)?;
            Ok(Affine { weight, bias: get(&format!("{name}.bias"), &[outputs])? })
        };
        let (d, channels) = (sizes.width, sizes.channels);
        let read_in = affine("read_in", &[d, channels], d)?;
        let block = |i: usize| {
            Ok(Block {
                ln_1: affine(&format!("h.{i}.ln_1"), &[d], d)?,
                c_attn: affine(&format!("h.{i}.attn.c_attn"), &[d, 3 * d], 3 * d)?,
                attn_proj: affine(&format!("h.{i}.attn.c_proj"), &[d, d], d)?,
                ln_2: affine(&format!("h.{i}.ln_2"), &[d], d)?,
                c_fc: affine(&format!("h.{i}.mlp.c_fc"), &[d, 4 * d], 4 * d)?,
                mlp_proj: affine(&format!("h.{i}.mlp.c_proj"), &[4 * d, d], d)?,
            })
        };
        let blocks = (0..sizes.layers).map(block).collect::<std::result::Result<_, E>>()?;
        let ln_f = affine("ln_f", &[d], d)?;
        let read_out = affine("read_out", &[1, d], 1)?;
        let positions = get("wpe.weight", &[sizes.positions, d])?;
        Ok(Self { read_in, blocks, ln_f, read_out, positions })
    }
}

pub struct Transformer {
    sizes: Sizes,
    parts: Parameters<Tensor>,
    parameters: Vec<(String, Tensor)>,
}

impl Transformer {
    /// A fresh model in f32, by `model.init` and `seed` (see [`taskvec_model::spec::InitSpec`]).
    pub fn init(model: &ModelSpec, data: &DataSpec, seed: u64, device: &Device) -> Result<Self> {
        let sizes = Sizes::new(model, data);
        Self::build(sizes, |name, shape| init::parameter(&model.init, sizes, seed, name, shape, device))
    }

    /// A model whose parameters `get(name, shape)` provides, asked for in the order of the forward pass.
    pub fn build<E>(
        sizes: Sizes,
        mut get: impl FnMut(&str, &[usize]) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        let mut parameters = Vec::new();
        let parts = Parameters::build(sizes, |name, shape| {
            let tensor = get(name, shape)?;
            parameters.push((name.to_owned(), tensor.clone()));
            Ok(tensor)
        })?;
        Ok(Self { sizes, parts, parameters })
    }

    /// The same model with every parameter passed through `change`.
    pub fn map(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut next = self.parameters.iter();
        Self::build(self.sizes, |_, _| {
            let (_, tensor) = next.next().expect("build asks for the same parameters in the same order");
            change(tensor)
        })
    }

    /// The same model with parameters of its own that gradients flow to.
    pub fn trainable(&self) -> Result<Self> {
        self.map(|t| Ok(Var::from_tensor(t)?.into_inner()))
    }

    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        self.map(|t| t.to_dtype(dtype))
    }

    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// All parameters with their names, in a fixed order.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Predictions of y at the x positions, (B, K), for tokens (B, 2K, C) of the model's dtype.
    ///
    /// A hook sees, and may replace, the activation at every [`HookPoint`] of a transformer: (B, T, d), and within attention
    /// (B, T, H, D).
    /// Without one, the forward pass does less: each
    /// block adds the outputs of attention and MLP to the residual stream as it computes them, and the last block leaves
    /// out what only y positions would get. Predictions with and without a hook agree to rounding.
    pub fn forward(&self, tokens: &Tensor, mut hook: Option<&mut dyn Hook>) -> Result<Tensor> {
        let rows = Rows::equal(tokens.dim(0)?, tokens.dim(1)?);
        let mut hook = Visitor::new(reborrow(&mut hook), &rows);
        let embedded = linear(tokens, &self.parts.read_in.weight.t()?.contiguous()?, &self.parts.read_in.bias)?;
        let mut x = hook.visit(HookPoint::Embed, embedded.broadcast_add(&self.parts.positions)?)?;
        for (i, block) in self.parts.blocks.iter().enumerate() {
            x = match i + 1 < self.parts.blocks.len() {
                _ if hook.is_there() => block.forward_hooked(&x, self.sizes.heads, i, &mut hook)?,
                true => block.forward(&x, self.sizes.heads)?,
                false => block.forward_at_x(&x, self.sizes.heads)?,
            };
        }
        self.predict(&if hook.is_there() { at_x(&x)? } else { x })
    }

    /// Final norm and read-out of the residual stream at the x positions, (B, K, d).
    fn predict(&self, x: &Tensor) -> Result<Tensor> {
        let (b, k, _) = x.dims3()?;
        let normed = norm(x, &self.parts.ln_f)?;
        linear(&normed, &self.parts.read_out.weight.t()?.contiguous()?, &self.parts.read_out.bias)?.reshape((b, k))
    }
}

/// The x positions, which are the even ones: (B, 2K, d) → (B, K, d).
fn at_x(x: &Tensor) -> Result<Tensor> {
    let (b, t, d) = x.dims3()?;
    x.reshape((b, t / 2, 2 * d))?.narrow(2, 0, d)?.contiguous()
}

fn norm(x: &Tensor, affine: &Affine<Tensor>) -> Result<Tensor> {
    layer_norm(x, &affine.weight, &affine.bias, LAYER_NORM_EPSILON)
}

impl Block<Tensor> {
    /// Queries, keys and values beside each other, (B, T, 3d).
    fn mixed(&self, x: &Tensor) -> Result<Tensor> {
        linear(&norm(x, &self.ln_1)?, &self.c_attn.weight, &self.c_attn.bias)
    }

    fn attention(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        causal_attention(&self.mixed(x)?, heads)
    }

    /// The same, part by part where a hook wants to see the parts.
    fn attention_hooked(&self, x: &Tensor, heads: usize, block: usize, hook: &mut Visitor<'_>) -> Result<Tensor> {
        const PARTS: [BlockPoint; 3] = [BlockPoint::Q, BlockPoint::K, BlockPoint::V];
        let at = |point| HookPoint::Block(block, point);
        let mixed = self.mixed(x)?;
        if ![&PARTS[..], &[BlockPoint::Pattern]].concat().into_iter().any(|point| hook.wants(at(point))) {
            return causal_attention(&mixed, heads);
        }
        let (b, t, d) = x.dims3()?;
        let mut part = |i: usize| {
            let part = mixed.narrow(2, i * d, d)?.contiguous()?.reshape((b, t, heads, d / heads))?;
            hook.visit(at(PARTS[i]), part)?.reshape((b * t, heads, d / heads))
        };
        let [q, k, v] = [part(0)?, part(1)?, part(2)?];
        let spans: Vec<Span> = (0..b).map(|row| Span::alone(row * t..(row + 1) * t)).collect();
        let how = Attend { scale: ((d / heads) as f64).sqrt().recip(), softcap: None, window: None };
        reading::read([&q, &k, &v], &spans, &how, block, hook)?.reshape((b, t, d))
    }

    fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        linear_gelu(&norm(x, &self.ln_2)?, &self.c_fc.weight, &self.c_fc.bias)
    }

    fn forward(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        self.after_attention(&self.attention(x, heads)?, x)
    }

    /// The block's output at the x positions alone, (B, K, d).
    fn forward_at_x(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        self.after_attention(&at_x(&self.attention(x, heads)?)?, &at_x(x)?)
    }

    fn after_attention(&self, attended: &Tensor, x: &Tensor) -> Result<Tensor> {
        let x = linear_residual(attended, &self.attn_proj.weight, &self.attn_proj.bias, x)?;
        linear_residual(&self.mlp(&x)?, &self.mlp_proj.weight, &self.mlp_proj.bias, &x)
    }

    fn forward_hooked(&self, x: &Tensor, heads: usize, block: usize, hook: &mut Visitor<'_>) -> Result<Tensor> {
        let x = hook.visit(HookPoint::Block(block, BlockPoint::ResidPre), x.clone())?;
        let (b, t, d) = x.dims3()?;
        let read = self.attention_hooked(&x, heads, block, hook)?.reshape((b, t, heads, d / heads))?;
        let mut visit = |point, x| hook.visit(HookPoint::Block(block, point), x);
        let read = visit(BlockPoint::Z, read)?;
        let Affine { weight, bias } = &self.attn_proj;
        let project = |heads: &Tensor| linear(heads, weight, &bias.zeros_like()?);
        let more = reading::replaced_results(&read, project, block, hook)?;
        let added = linear(&read.reshape((b, t, d))?, weight, bias)?;
        let added = more.map_or(Ok(added.clone()), |more| added + more)?;
        let mut visit = |point, x| hook.visit(HookPoint::Block(block, point), x);
        let added = visit(BlockPoint::AttnOut, added)?;
        let x = visit(BlockPoint::ResidMid, (x + added)?)?;
        let added = visit(BlockPoint::MlpOut, linear(&self.mlp(&x)?, &self.mlp_proj.weight, &self.mlp_proj.bias)?)?;
        visit(BlockPoint::ResidPost, (x + added)?)
    }
}
