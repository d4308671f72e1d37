//! Pretrained language models: one decoder, built of shared parts as its [`Config`] says.
//!
//! There is no padding. A [`Batch`] has rows of any lengths, whose tokens go through the model one row after the other;
//! positions count from each row's beginning, and every number depends on its own row alone.

mod adapter;
mod attention;
mod batch;
mod block;
mod cache;
mod config;
mod generate;
mod linear;
mod mamba2;
mod mlp;
mod norm;
mod pass;
mod rotary;
mod share;
mod tail;

pub use batch::{Batch, EmptyRow, Row, Rows};
pub use block::Block;
pub use cache::Cache;
pub use config::{
    AttentionConfig, Config, Embedding, Mamba2Config, MixerConfig, MlpConfig, MlpKind, NormConfig, NormKind, Placement,
    RotaryConfig, RotaryScaling, Unembedding,
};
pub use generate::{generate, go_on};
pub use linear::{Linear, Projection};

pub(crate) use self::{
    adapter::{Adapter, Dropout},
    attention::Attention,
    block::{Mixer, Sublayer},
    mamba2::{Mamba2, Parameters as MambaParameters, Sizes},
    mlp::{Kind as MlpParts, Mlp},
    norm::{Norm, wide},
    pass::Pass,
    rotary::Frequencies,
    tail::Tail,
};

use crate::{
    ScienceError,
    hook::{BlockPoint, Hook, HookPoint, Visitor, reborrow},
};
use cache::{Keys, LayerState, Recurrent};
use candle_core::{DType, Device, Result, Tensor};
use mamba2::State;
use taskvec_kernels::Span;

/// Which tokens' predictions are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// No token's.
    None,
    /// Those of each row's last token.
    Last,
    All,
}

/// A language model with its weights. Nothing in it changes during a pass; what does is in [`Cache`] and [`Hook`].
///
/// A clone shares the weights: it costs next to nothing.
#[derive(Clone)]
pub struct LanguageModel {
    pub(crate) config: Config,
    /// (V, d).
    pub(crate) embedding: Tensor,
    /// Learned positions, (context, d).
    pub(crate) positions: Option<Tensor>,
    pub(crate) rotary: Option<Frequencies>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Norm,
    /// (V, d).
    pub(crate) unembedding: Linear,
}

impl LanguageModel {
    /// Sizes and everything else that distinguishes this model from others.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What weights and activations are held in.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// Where a pass begins. Blocks may be on other devices.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// The linear maps of a block (from 0), to be read or changed.
    pub fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// An empty cache for `rows` rows.
    pub fn cache(&self, rows: usize) -> Result<Cache> {
        let layer = |block: &Block| match &self.config.mixer {
            MixerConfig::Attention(a) => {
                Keys::new(a.groups, a.head, wide(self.dtype()), block.device()).map(LayerState::Attention)
            }
            MixerConfig::Mamba2(m) => {
                let state = State::zeros(m, rows, wide(self.dtype()), block.device());
                state.map(|state| LayerState::Recurrent(Recurrent::new(state, rows)))
            }
        };
        Ok(Cache::new(rows, self.blocks.iter().map(layer).collect::<Result<_>>()?))
    }

    /// One pass over `batch`, whose rows go on after what `cache` holds of them (row i of the batch is row i of the cache).
    ///
    /// `hook` sees and may replace activations: the residual stream as it enters block 1 and as blocks leave it are
    /// [`HookPoint::hidden`]. The last block is computed for the tokens of which somebody wants to know ([`Hook::looks_at`]). Gives (B, V) logits for [`Logits::Last`], (N, V) for [`Logits::All`], in f32 at least.
    ///
    /// # Errors
    /// [`ScienceError::TooLong`] and [`ScienceError::UnknownToken`], which name the row; tensor errors. The cache then
    /// is as it was.
    pub fn forward(
        &self,
        batch: &Batch,
        mut cache: Option<&mut Cache>,
        mut hook: Option<&mut dyn Hook>,
        wanted: Logits,
    ) -> std::result::Result<Option<Tensor>, ScienceError> {
        let (rows, spans) = match &mut cache {
            Some(cache) => cache.prepare(batch)?,
            None => (Rows::of(batch), spans(batch)),
        };
        self.check(batch, &rows)?;
        self.check_sharing(&rows, hook.as_deref())?;
        let tail = self.tail(&rows, &spans, hook.as_deref(), wanted)?;
        let mut pass = self.pass(&rows, spans, reborrow(&mut hook))?;
        let mut x = self.embed(batch.tokens(), &mut pass)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let state = cache.as_mut().map(|cache| &mut cache.layers_mut()[i]);
            pass.tail = tail.as_ref().filter(|_| i + 1 == self.blocks.len());
            x = block.forward(&x, i, state, &mut pass)?;
        }
        if let Some(cache) = cache {
            cache.keep(batch, &rows);
        }
        Ok(match wanted {
            Logits::None => None,
            Logits::All => Some(self.logits(&x)?),
            Logits::Last => {
                let rows = tail.as_ref().map_or(&rows, Tail::rows);
                let last: Vec<u32> = rows.last().map(|t| t as u32).collect();
                Some(self.logits(&x.index_select(&Tensor::new(last, x.device())?, 0)?)?)
            }
        })
    }

    /// What the final norm and the unembedding make of states of the residual stream, (…, d) to (…, V) in f32 at least:
    /// of the last block's, the model's predictions; of earlier ones, the logit lens.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let states = states.to_device(self.unembedding.weight().device())?;
        let logits = self.unembedding.forward(&self.norm.forward(&states)?)?.to_dtype(wide(states.dtype()))?;
        match self.config.unembedding.softcap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    /// What the blocks share in a pass over `rows`.
    pub(crate) fn pass<'a>(
        &self,
        rows: &'a Rows,
        spans: Vec<Span>,
        hook: Option<&'a mut dyn Hook>,
    ) -> Result<Pass<'a>> {
        let positions: Vec<usize> = rows.positions().collect();
        let angles = |rotary: &Frequencies| rotary.at(&positions, wide(self.dtype()), self.device());
        let rotary = self.rotary.as_ref().map(angles).transpose()?;
        Ok(Pass { hook: Visitor::new(hook, rows), spans, rotary, tail: None })
    }

    /// What the last block is computed for, where it is attention and that is not all tokens.
    fn tail(&self, rows: &Rows, spans: &[Span], hook: Option<&dyn Hook>, wanted: Logits) -> Result<Option<Tail>> {
        match (&self.config.mixer, self.blocks.len().checked_sub(1)) {
            (MixerConfig::Attention(_), Some(last)) => Tail::of(last, rows, spans, hook, wanted),
            _ => Ok(None),
        }
    }

    /// What enters the first block, (N, d).
    pub(crate) fn embed(&self, tokens: &[u32], pass: &mut Pass<'_>) -> Result<Tensor> {
        let dtype = self.dtype();
        let mut x = self.embedding.index_select(&Tensor::new(tokens, self.device())?, 0)?.to_dtype(wide(dtype))?;
        if let Some(scale) = self.config.embedding.scale {
            // Rounded to the type of the weights, as models were trained with it.
            x = x.broadcast_mul(&Tensor::new(scale, self.device())?.to_dtype(dtype)?.to_dtype(x.dtype())?)?;
        }
        if let Some(table) = &self.positions {
            let positions: Vec<u32> = pass.hook.rows().positions().map(|p| p as u32).collect();
            x = (&x + table.index_select(&Tensor::new(positions, self.device())?, 0)?.to_dtype(x.dtype())?)?;
        }
        pass.hook.visit(HookPoint::Embed, x)
    }

    /// Rows must fit the context, and tokens the vocabulary.
    pub(crate) fn check(&self, batch: &Batch, rows: &Rows) -> std::result::Result<(), ScienceError> {
        let (vocabulary, context) = (self.config.vocabulary, self.config.context.unwrap_or(usize::MAX));
        for (i, row) in rows.iter().enumerate() {
            let tokens = row.start + row.tokens.len();
            if tokens > context {
                return Err(ScienceError::TooLong { row: row.index, tokens, context });
            }
            let mut tokens = batch.tokens()[batch.beginning(i)].iter().chain(batch.row(i));
            if let Some(&token) = tokens.find(|t| **t as usize >= vocabulary) {
                return Err(ScienceError::UnknownToken { row: row.index, token, vocabulary });
            }
        }
        Ok(())
    }

    /// States have no beginning that rows could share, and patterns are those of whole rows.
    fn check_sharing(&self, rows: &Rows, hook: Option<&dyn Hook>) -> Result<()> {
        if !rows.share() {
            return Ok(());
        }
        if !self.lets_rows_share() {
            candle_core::bail!("rows of a model with states cannot share their beginnings")
        }
        let pattern = |i| HookPoint::Block(i, BlockPoint::Pattern);
        if hook.is_some_and(|hook| (0..self.blocks.len()).any(|i| hook.wants(pattern(i)))) {
            candle_core::bail!("rows that share their beginnings have no attention patterns of their own")
        }
        Ok(())
    }

    /// Can rows of a batch share their beginnings?
    pub(crate) fn lets_rows_share(&self) -> bool {
        matches!(self.config.mixer, MixerConfig::Attention(_))
    }
}

/// Where the keys of a batch lie that goes on after nothing: those of its beginnings, then of its rows.
fn spans(batch: &Batch) -> Vec<Span> {
    let row = |i| Span { prefix: batch.beginning(i), ..Span::alone(batch.range(i)) };
    batch.beginnings().map(Span::alone).chain((0..batch.len()).map(row)).collect()
}
