//! Puts a model together from its configuration and its tensors.

use super::{
    LoadError, Parameters, Weights,
    names::{Layout, Names, NormSite, Stored},
    spread::Placing,
};
use crate::model::language::{
    Attention, AttentionConfig, Block, Config, Frequencies, LanguageModel, Linear, Mamba2, Mamba2Config,
    MambaParameters, Mixer, MixerConfig, Mlp, MlpConfig, MlpKind, MlpParts, Norm, NormConfig, NormKind, Placement,
    Projection, Sizes, Sublayer,
};
use taskvec_kernels::Attend;

/// The model that `config` describes, its parts where `placing` says, which is of as many blocks.
///
/// # Errors
/// Where a tensor is missing, too many, or of another shape than `config` says, or cannot be read.
pub(super) fn assemble(
    config: Config,
    layout: Layout,
    weights: &dyn Weights,
    placing: &Placing,
) -> Result<LanguageModel, LoadError> {
    let parameters = Parameters::new(weights);
    let names = Names::new(layout, &config, |name| parameters.has(name));
    let mut builder = Builder { config: &config, names, parameters };
    let (width, vocabulary) = (config.width, config.vocabulary);
    builder.parameters.move_to(&placing.embedding);
    let embedding = builder.parameters.get(&builder.names.embedding(), &[vocabulary, width])?;
    let positions = match (config.embedding.positions, config.context) {
        (true, Some(context)) => Some(builder.parameters.get(&builder.names.positions(), &[context, width])?),
        _ => None,
    };
    let block = |(i, device)| {
        builder.parameters.move_to(device);
        builder.block(i)
    };
    let blocks = placing.blocks.iter().enumerate().map(block).collect::<Result<_, _>>()?;
    builder.parameters.move_to(&placing.unembedding);
    let norm = builder.norm(config.norm, builder.names.final_norm(), width)?;
    let unembedding = match config.unembedding.tied {
        true => Linear::new(embedding.clone(), None),
        false => builder.unembedding()?,
    };
    let rotary = match &config.mixer {
        MixerConfig::Attention(attention) => {
            attention.rotary.as_ref().map(|rotary| Frequencies::new(rotary, attention.head))
        }
        MixerConfig::Mamba2(_) => None,
    };
    let Builder { names, parameters, .. } = builder;
    parameters.finish(|name| names.is_harmless(name))?;
    Ok(LanguageModel { embedding, positions, rotary, blocks, norm, unembedding, config })
}

struct Builder<'a> {
    config: &'a Config,
    names: Names<'a>,
    parameters: Parameters<'a>,
}

impl Builder<'_> {
    fn block(&mut self, i: usize) -> Result<Block, LoadError> {
        let mixer = match &self.config.mixer {
            MixerConfig::Attention(attention) => Mixer::Attention(self.attention(i, attention)?),
            MixerConfig::Mamba2(mamba2) => Mixer::Mamba2(self.mamba2(i, mamba2)?),
        };
        let mixer = self.sublayer(i, mixer, NormSite::BeforeMixer, NormSite::AfterMixer)?;
        let mlp = match &self.config.mlp {
            None => None,
            Some(mlp) => {
                let mlp = self.mlp(i, mlp)?;
                Some(self.sublayer(i, mlp, NormSite::BeforeMlp, NormSite::AfterMlp)?)
            }
        };
        Ok(Block { mixer, mlp })
    }

    fn sublayer<T>(&mut self, i: usize, inner: T, before: NormSite, after: NormSite) -> Result<Sublayer<T>, LoadError> {
        let placement = self.config.placement;
        let mut norm = |site, there: bool| match there {
            true => self.norm(self.config.norm, self.names.norm(i, site), self.config.width).map(Some),
            false => Ok(None),
        };
        let before = norm(before, placement != Placement::After)?;
        Ok(Sublayer { before, inner, after: norm(after, placement != Placement::Before)? })
    }

    fn attention(&mut self, i: usize, config: &AttentionConfig) -> Result<Attention, LoadError> {
        let width = self.config.width;
        let (q, kv) = (config.heads * config.head, config.groups * config.head);
        let mut linear = |projection, inputs, outputs, bias| {
            self.linear(&self.names.attention(i, projection, config, outputs), inputs, bias)
        };
        let maps = [
            linear(Projection::Q, width, q, config.bias)?,
            linear(Projection::K, width, kv, config.bias)?,
            linear(Projection::V, width, kv, config.bias)?,
            linear(Projection::Out, q, width, config.out_bias)?,
        ];
        let norms = match config.norm {
            false => None,
            true => {
                let queries = self.norm(self.config.norm, self.names.norm(i, NormSite::Queries), q)?;
                Some((queries, self.norm(self.config.norm, self.names.norm(i, NormSite::Keys), kv)?))
            }
        };
        let attend = Attend { scale: config.scale, softcap: config.softcap, window: config.windows[i] };
        let [q, k, v, out] = maps;
        let (heads, groups, head, clip) = (config.heads, config.groups, config.head, config.clip);
        Ok(Attention { q, k, v, out, norms, heads, groups, head, clip, attend })
    }

    fn mamba2(&mut self, i: usize, config: &Mamba2Config) -> Result<Mamba2, LoadError> {
        let (width, sizes) = (self.config.width, Sizes::of(config));
        let (inner, mixed) = (sizes.inner(), sizes.mixed());
        let maps = [(Projection::MixerIn, width, inner + mixed + config.heads), (Projection::MixerOut, inner, width)]
            .map(|(projection, inputs, outputs)| {
                self.linear(&self.names.mamba2_projection(i, projection, outputs), inputs, config.bias)
            });
        let mut get = |name, shape: &[usize]| self.parameters.get(&self.names.mamba2(i, name), shape);
        let [input, output] = maps;
        Ok(Mamba2::new(
            config,
            [input?, output?],
            MambaParameters {
                kernel: get("conv1d.weight", &[mixed, 1, config.kernel])?,
                kernel_bias: if config.conv_bias { Some(get("conv1d.bias", &[mixed])?) } else { None },
                step_bias: get("dt_bias", &[config.heads])?,
                log_rate: get("A_log", &[config.heads])?,
                skip: get("D", &[config.heads])?,
                norm: get("norm.weight", &[inner])?,
                epsilon: self.config.norm.epsilon,
            },
        )?)
    }

    fn mlp(&mut self, i: usize, config: &MlpConfig) -> Result<Mlp, LoadError> {
        let width = self.config.width;
        let mut linear = |projection, inputs, outputs| {
            self.linear(&self.names.mlp(i, projection, config, outputs), inputs, config.bias)
        };
        let kind = match config.kind {
            MlpKind::Gelu => MlpParts::Gelu,
            MlpKind::Gated(activation) => {
                MlpParts::Gated { gate: linear(Projection::Gate, width, config.inner)?, activation }
            }
        };
        let up = linear(Projection::Up, width, config.inner)?;
        Ok(Mlp { kind, up, down: linear(Projection::Down, config.inner, width)? })
    }

    fn linear(&mut self, stored: &Stored, inputs: usize, bias: bool) -> Result<Linear, LoadError> {
        let Stored { name, outputs, of, transposed } = stored;
        let weight = format!("{name}.weight");
        let weight = match transposed {
            false => self.parameters.rows(&weight, &[*of, inputs], outputs.clone())?,
            true => {
                let whole = self.parameters.get(&weight, &[inputs, *of])?;
                whole.narrow(1, outputs.start, outputs.len())?.t()?.contiguous()?
            }
        };
        let bias = match bias {
            false => None,
            true => Some(self.parameters.rows(&format!("{name}.bias"), &[*of], outputs.clone())?),
        };
        Ok(Linear::new(weight, bias))
    }

    /// The unembedding of its own.
    fn unembedding(&mut self) -> Result<Linear, LoadError> {
        let outputs = self.config.vocabulary;
        let stored = Stored { name: self.names.unembedding(), outputs: 0..outputs, of: outputs, transposed: false };
        let bias = self.parameters.has(&format!("{}.bias", stored.name));
        self.linear(&stored, self.config.width, bias)
    }

    /// A norm over `width` elements whose parameters, where it has any, are `name.weight` and `name.bias`.
    fn norm(&mut self, config: NormConfig, name: String, width: usize) -> Result<Norm, LoadError> {
        let epsilon = config.epsilon;
        let mut get = |part: &str| self.parameters.get(&format!("{name}.{part}"), &[width]);
        Ok(match config.kind {
            NormKind::Rms => Norm::rms(get("weight")?, epsilon)?,
            NormKind::RmsPlusOne => Norm::rms_plus_one(get("weight")?, epsilon)?,
            NormKind::Layer => Norm::layer(get("weight")?, get("bias")?, epsilon)?,
            NormKind::LayerPlain => {
                Norm::layer_plain(width, epsilon, self.parameters.dtype(), self.parameters.device())?
            }
        })
    }
}
