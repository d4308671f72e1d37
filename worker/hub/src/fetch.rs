//! A whole model: the files that are missing, and at last the name of its revision.

use crate::{
    Hub, HubError, Watch,
    choose::{self, INDEX, Weights},
    name::{self, Name},
    remote::{About, Listing},
    transfer::{self, Wanted},
};
use hf_hub::{CacheRepo, Repo, RepoType};
use std::{
    fs::{self, File as Handle, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

/// How often a model that another process is fetching is asked for.
const LOCK_EVERY: Duration = Duration::from_millis(200);

/// A model that is now in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The folder that has its files.
    pub folder: PathBuf,
    pub revision: String,
    pub commit: String,
    /// All that belong to it, in the order in which they were looked at.
    pub files: Vec<File>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub bytes: u64,
    /// It was not in the cache before.
    pub is_new: bool,
}

/// One fetch under way.
struct Fetch<'a> {
    hub: &'a Hub,
    name: &'a Name,
    commit: String,
    places: CacheRepo,
    watch: &'a mut dyn Watch,
    files: Vec<File>,
}

impl Hub {
    /// Brings a model into the cache: a branch, a tag or a commit of it, or else `main`. What is there already is not
    /// fetched again; where another process is fetching the same model, this one waits for it.
    ///
    /// # Errors
    /// Where the hub cannot be reached or does not have the model, where it is not one that is read here, where the disk
    /// refuses, and where `watch` stops it. What came until then is kept, and nothing that is incomplete can be loaded.
    pub fn fetch(&self, name: &Name, revision: Option<&str>, watch: &mut dyn Watch) -> Result<Fetched, HubError> {
        let revision = name::revision(revision)?;
        let _alone = self.lock(name, watch)?;
        let listing = self.remote.listing(name, revision)?;
        let unusable = |reason: String| HubError::Unusable { name: name.clone(), reason };
        let weights = choose::weights(&listing).map_err(unusable)?;
        let places = self.places(name, &listing.sha);
        let folder = places.pointer_path(&listing.sha);
        let commit = listing.sha.clone();
        let mut fetch = Fetch { hub: self, name, commit: commit.clone(), places, watch, files: Vec::new() };
        let index = match weights {
            Weights::Single => None,
            Weights::Indexed => Some(fetch.read(INDEX)?),
        };
        for file in choose::files(&listing, index.as_deref()).map_err(unusable)? {
            fetch.bring(&file)?;
        }
        let files = fetch.files;
        self.note(name, revision, &listing)?;
        Ok(Fetched { folder, revision: revision.to_owned(), commit, files })
    }

    fn places(&self, name: &Name, revision: &str) -> CacheRepo {
        self.cache.repo(Repo::with_revision(name.as_str().to_owned(), RepoType::Model, revision.to_owned()))
    }

    /// A branch or a tag now leads to this commit.
    fn note(&self, name: &Name, revision: &str, listing: &Listing) -> Result<(), HubError> {
        if revision == listing.sha {
            return Ok(());
        }
        self.places(name, revision).create_ref(&listing.sha).map_err(HubError::disk(self.cache.path()))
    }

    /// One process at a time fetches a model.
    fn lock(&self, name: &Name, watch: &mut dyn Watch) -> Result<Handle, HubError> {
        let folder = self.cache.path().join(".locks");
        fs::create_dir_all(&folder).map_err(HubError::disk(&folder))?;
        let repo = Repo::new(name.as_str().to_owned(), RepoType::Model);
        let path = folder.join(format!("{}.taskvec.lock", repo.folder_name()));
        let file = Handle::create(&path).map_err(HubError::disk(&path))?;
        let mut waits = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if watch.stops() => return Err(HubError::Stopped),
                Err(TryLockError::WouldBlock) if !waits => {
                    watch.waits();
                    waits = true;
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_EVERY),
                Err(TryLockError::Error(source)) => return Err(HubError::Disk { path, source }),
            }
        }
    }
}

impl Fetch<'_> {
    /// Brings a small file and reads it.
    fn read(&mut self, file: &str) -> Result<Vec<u8>, HubError> {
        let path = self.bring(file)?;
        fs::read(&path).map_err(HubError::disk(&path))
    }

    /// Where the file is in the cache, once it is there.
    fn bring(&mut self, file: &str) -> Result<PathBuf, HubError> {
        if self.watch.stops() {
            return Err(HubError::Stopped);
        }
        let folder = self.places.pointer_path(&self.commit);
        let pointer = folder.join(file);
        let about = self.hub.remote.about(self.name, &self.commit, file)?;
        if about.size > choose::most_bytes(file) {
            let reason = format!("its {file} has {} bytes, more than such a file should", about.size);
            return Err(HubError::Unusable { name: self.name.clone(), reason });
        }
        let is_new = !transfer::is_whole(&pointer, &about);
        if is_new {
            self.place(file, &about, &folder)?;
        }
        self.files.push(File { name: file.to_owned(), bytes: about.size, is_new });
        Ok(pointer)
    }

    /// The content goes among the blobs, and a link to it into the commit's folder.
    fn place(&mut self, file: &str, about: &About, folder: &Path) -> Result<(), HubError> {
        // MODEL/snapshots/COMMIT and MODEL/blobs.
        let blobs = folder.ancestors().nth(2).unwrap_or(folder).join("blobs");
        for dir in [folder, &blobs] {
            fs::create_dir_all(dir).map_err(HubError::disk(dir))?;
        }
        let blob = blobs.join(&about.etag);
        if !transfer::is_whole(&blob, about) {
            let wanted = Wanted { name: self.name, commit: &self.commit, file, about };
            transfer::bring(&self.hub.remote, wanted, &blob, self.watch)?;
        }
        let pointer = folder.join(file);
        if pointer.symlink_metadata().is_ok() {
            fs::remove_file(&pointer).map_err(HubError::disk(&pointer))?;
        }
        let target = Path::new("../../blobs").join(&about.etag);
        std::os::unix::fs::symlink(target, &pointer).map_err(HubError::disk(&pointer))
    }
}
