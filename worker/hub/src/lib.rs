//! Models from the HuggingFace hub, into the cache that HuggingFace's own tools keep: what they have fetched is found
//! here, and what is fetched here is found by them.
//!
//! Of a repository only what the loader reads is fetched: `config.json`, `tokenizer.json` and the two files beside it, and
//! the weights as safetensors. A file appears under its name when all of it is there and its digest is right; `config.json`
//! comes last, so that a model that is half there has none and is not taken for a whole one. What was broken off goes on
//! where it stopped.
//!
//! The crate `hf-hub` says where things are in the cache. Its own downloads are not used: they know no timeout, cannot be
//! stopped, compare no digests, and send the token to wherever the hub redirects.

mod choose;
mod error;
mod fetch;
mod name;
mod place;
mod remote;
mod transfer;

pub use error::HubError;
pub use fetch::{Fetched, File};
pub use name::Name;
pub use place::Settings;

/// Sees what is being fetched, and can stop it.
pub trait Watch {
    /// A file of `size` bytes begins; `have` of them are there from before.
    fn begins(&mut self, file: &str, size: u64, have: u64);

    /// So many more bytes have come.
    fn received(&mut self, bytes: u64);

    /// Another process is fetching the same model, and is waited for.
    fn waits(&mut self);

    /// Asked before every request and for every few kilobytes.
    fn stops(&self) -> bool;
}

/// Sees nothing and stops nothing.
impl Watch for () {
    fn begins(&mut self, _: &str, _: u64, _: u64) {}

    fn received(&mut self, _: u64) {}

    fn waits(&mut self) {}

    fn stops(&self) -> bool {
        false
    }
}

/// The hub, and the cache on this machine.
pub struct Hub {
    cache: hf_hub::Cache,
    remote: remote::Remote,
}

impl Hub {
    pub fn new(settings: Settings) -> Self {
        let Settings { endpoint, cache, token } = settings;
        Self { cache: hf_hub::Cache::new(cache), remote: remote::Remote::new(endpoint, token) }
    }

    /// The hub that the environment names ([`Settings::read`]).
    ///
    /// # Errors
    /// [`HubError::Offline`] where the environment forbids it; [`HubError::NoPlace`] where there is no place for a cache.
    pub fn from_environment() -> Result<Self, HubError> {
        Settings::read(|name| std::env::var_os(name)).map(Self::new)
    }

    /// The branches and tags whose names match `pattern` (`*` stands for any characters, `?` for one), sorted.
    ///
    /// # Errors
    /// Where the hub cannot be reached or does not show the model, and where nothing matches.
    pub fn matching(&self, name: &Name, pattern: &str) -> Result<Vec<String>, HubError> {
        let known = self.remote.revisions(name)?;
        let found: Vec<String> =
            known.iter().filter(|known| taskvec_model::pattern::matches(pattern, known)).cloned().collect();
        match found.is_empty() {
            true => Err(HubError::NoMatch { name: name.clone(), pattern: pattern.to_owned(), known }),
            false => Ok(found),
        }
    }
}
