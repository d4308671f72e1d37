//! From files to models: a folder as downloaded from the HuggingFace hub, its copy in a hub cache, or a GGUF file.
//!
//! [`Files::find`] reads and checks what is small (configuration, headers of the weights), so that a wrong model is refused
//! before anything large is read; [`Files::load`] reads the weights, one tensor after the other.

mod assemble;
mod config;
mod error;
pub mod gguf;
mod identity;
mod locate;
mod names;
mod shards;
mod spread;
mod vocabulary;
mod weights;

pub use error::LoadError;
pub use spread::{Parts, Room};
pub use weights::{Parameters, Weights};

use crate::model::language::{Config, LanguageModel};
use candle_core::DType;
use gguf::Gguf;
use names::{Layout, Names};
use shards::Shards;
use spread::Placing;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use taskvec_model::spec::{FloatType, ModelIdentity};

/// A model's files, found and looked into.
pub struct Files {
    source: Source,
    revision: Option<String>,
    config: Config,
    layout: Layout,
}

enum Source {
    Folder { folder: PathBuf, shards: Shards },
    Gguf(Box<Gguf>),
}

impl Files {
    /// The files of a model: `path` is a folder, a GGUF file, or a hub name (`owner/name`) of which a hub cache on this
    /// machine has a copy; `revision` is a folder below it, or a branch, tag or commit of the cache.
    ///
    /// # Errors
    /// Where there is no such model (the error says what to place where), its architecture is not known, or its files are
    /// incomplete, damaged or do not belong together.
    pub fn find(path: &str, revision: Option<&str>) -> Result<Self, LoadError> {
        if gguf::is_one(Path::new(path)) {
            return Self::of_gguf(Path::new(path), revision);
        }
        let folder = locate::folder(path, revision, &locate::hub_caches())?;
        let file = folder.join("config.json");
        if !file.is_file() {
            let reason = "has no config.json; name the folder that has it, or a revision below this one".to_owned();
            return Err(LoadError::BadFolder { path: folder, reason });
        }
        let (config, layout) = config::read(&file)?;
        let source = Source::Folder { shards: Shards::open(&folder)?, folder };
        let files = Self { source, revision: revision.map(str::to_owned), config, layout };
        if let Some(tokenizer) = files.tokenizer() {
            vocabulary::check(&tokenizer, files.config.vocabulary)?;
        }
        Ok(files)
    }

    fn of_gguf(path: &Path, revision: Option<&str>) -> Result<Self, LoadError> {
        if let Some(revision) = revision {
            let (path, revision) = (path.to_owned(), revision.to_owned());
            return Err(LoadError::NoRevision { path, revision, known: Vec::new() });
        }
        let gguf = Box::new(Gguf::open(path)?);
        let (config, layout) = config::of(path, gguf.config())?;
        Ok(Self { source: Source::Gguf(gguf), revision: None, config, layout })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The folder all files are in; none where the model is one file.
    pub fn folder(&self) -> Option<&Path> {
        match &self.source {
            Source::Folder { folder, .. } => Some(folder),
            Source::Gguf(_) => None,
        }
    }

    /// The file that is all there is of the model, where it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Folder { .. } => None,
            Source::Gguf(gguf) => Some(gguf),
        }
    }

    /// `tokenizer.json`, where there is one. The tokenizer of a GGUF file is within: see [`Gguf::tokenizer`].
    pub fn tokenizer(&self) -> Option<PathBuf> {
        Some(self.folder()?.join("tokenizer.json")).filter(|path| path.is_file())
    }

    fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        match &self.source {
            Source::Folder { shards, .. } => shards.shapes(),
            Source::Gguf(gguf) => gguf.shapes(),
        }
    }

    /// Everything that is read of the model.
    fn paths(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Gguf(gguf) => vec![gguf.path().to_owned()],
            Source::Folder { folder, shards } => {
                let weights = shards.paths().map(Path::to_owned);
                weights.chain([folder.join("config.json")]).chain(self.tokenizer()).collect()
            }
        }
    }

    /// Number of parameters; tied weights count once.
    pub fn parameters(&self) -> u64 {
        self.counted().map(|(_, elements)| elements).sum()
    }

    /// Names and sizes of all tensors that compute something.
    fn counted(&self) -> impl Iterator<Item = (&str, u64)> {
        let names = self.names();
        let counted = self.shapes().iter().filter(move |(name, _)| !names.is_harmless(name));
        counted.map(|(name, shape)| (name.as_str(), shape.iter().product::<usize>() as u64))
    }

    fn names(&self) -> Names<'_> {
        Names::new(self.layout, &self.config, |name| self.shapes().contains_key(name))
    }

    /// Memory that the weights take once they are loaded, part by part; loading needs no more, but for one tensor on its way
    /// to another device.
    pub fn parts(&self, dtype: DType) -> Parts {
        let names = self.names();
        let (tied, blocks) = (self.config.unembedding.tied, vec![0; self.config.layers]);
        let mut parts = Parts { embedding: 0, blocks, unembedding: 0, tied };
        for (name, elements) in self.counted() {
            let part = match names.block_of(name) {
                Some(block) if block < parts.blocks.len() => &mut parts.blocks[block],
                _ if name == names.embedding() || name == names.positions() => &mut parts.embedding,
                _ => &mut parts.unembedding,
            };
            *part += elements * dtype.size_in_bytes() as u64;
        }
        parts
    }

    /// All of [`Self::parts`].
    pub fn bytes(&self, dtype: DType) -> u64 {
        self.parameters() * dtype.size_in_bytes() as u64
    }

    /// What the model is, with the BLAKE3 digest of everything that is read of it. Hashing takes a while; a file is hashed
    /// once in a process, as long as its size and its time of change stay the same.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn identity(&self) -> Result<ModelIdentity, LoadError> {
        let config = &self.config;
        Ok(ModelIdentity {
            digest: identity::digest(&self.paths())?,
            arch: config.arch.to_owned(),
            layers: config.layers as u32,
            width: config.width as u32,
            heads: config.heads().unwrap_or(0) as u32,
            vocabulary: config.vocabulary as u32,
            parameters: self.parameters(),
            context: config.context.map(|c| c as u32),
            step: self.revision.as_deref().map_or(0, locate::step),
        })
    }

    /// The model with all weights as `dtype`, spread over the devices of `rooms` in their order (see [`Room`]).
    ///
    /// # Errors
    /// [`LoadError::NoRoom`] before anything is read; where a tensor is missing, left over or of another shape than
    /// config.json says, or cannot be read.
    pub fn load(&self, dtype: DType, rooms: &[Room]) -> Result<LanguageModel, LoadError> {
        let config = self.config.clone();
        let placing = Placing::new(self.path(), &self.parts(dtype), rooms)?;
        match &self.source {
            Source::Folder { shards, .. } => assemble::assemble(config, self.layout, &shards.reader(dtype), &placing),
            Source::Gguf(gguf) => assemble::assemble(config, self.layout, &gguf.weights(dtype), &placing),
        }
    }

    /// The folder or the file.
    fn path(&self) -> &Path {
        match &self.source {
            Source::Folder { folder, .. } => folder,
            Source::Gguf(gguf) => gguf.path(),
        }
    }
}

/// What the model at `path` is: see [`Files::find`] and [`Files::identity`].
///
/// # Errors
/// As those.
pub fn identify(path: &str, revision: Option<&str>) -> Result<ModelIdentity, LoadError> {
    Files::find(path, revision)?.identity()
}

/// Is `path` a name on the hub, of which this machine has no whole copy (of this revision)? The headers of its weights are
/// read, and nothing else.
pub fn is_wanting(path: &str, revision: Option<&str>) -> bool {
    if gguf::is_one(Path::new(path)) || !locate::is_hub_name(path) {
        return false;
    }
    let folder = locate::folder(path, revision, &locate::hub_caches());
    !folder.is_ok_and(|folder| folder.join("config.json").is_file() && Shards::open(&folder).is_ok())
}

/// Is `path` a name on the hub, and not that of something here?
pub fn is_hub_name(path: &str) -> bool {
    !gguf::is_one(Path::new(path)) && locate::is_hub_name(path)
}

/// Revisions of the model at `path` whose names match `pattern` (`*` stands for any characters, `?` for one), in the order
/// of the pretraining steps they name.
///
/// # Errors
/// Where there is no such model, or no revision matches.
pub fn revisions(path: &str, pattern: &str) -> Result<Vec<String>, LoadError> {
    locate::revisions(path, pattern, &locate::hub_caches())
}

/// The tensor type of a float type of the specification.
pub fn dtype(float: FloatType) -> DType {
    match float {
        FloatType::F32 => DType::F32,
        FloatType::Bf16 => DType::BF16,
        FloatType::F16 => DType::F16,
    }
}
