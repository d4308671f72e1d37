//! Checkpoints on the worker's disk, by their digest: what it has downloaded, and what it has written itself.
//!
//! Kept below a limit by removing what was used longest ago; a pinned blob (an input being read, an output not yet
//! uploaded) stays. Nothing here is precious, so nothing is synced to disk: a blob is verified whenever it is looked
//! up, and one that does not match its digest is removed as if it had never been there.

use crate::{
    data_dir::{UNFINISHED, remove_unfinished},
    error::{AgentError, AtPath},
    lock,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use taskvec_model::{id::Digest, job::BlobRef};
use taskvec_wire::CHUNK_BYTES;

#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    limit: u64,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    entries: BTreeMap<Digest, Entry>,
    bytes: u64,
    /// Grows with every use; orders the entries by their last one.
    clock: u64,
    drafts: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
    pins: usize,
}

impl Cache {
    /// Opens the cache, with what an earlier process left in it.
    pub fn open(folder: &Path, limit: u64) -> Result<Arc<Self>, AgentError> {
        std::fs::create_dir_all(folder).at("cannot create", folder)?;
        remove_unfinished(folder).at("cannot clean", folder)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).at("cannot read", folder)? {
            let entry = entry.at("cannot read", folder)?;
            let meta = entry.metadata().at("cannot read", entry.path())?;
            if let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()) {
                found.push((meta.modified().at("cannot read", entry.path())?, digest, meta.len()));
            }
        }
        found.sort_unstable();
        let cache = Self { folder: folder.to_owned(), limit, index: Mutex::default() };
        {
            let mut index = lock(&cache.index);
            for (_, digest, bytes) in found {
                index.insert(digest, bytes);
            }
            cache.evict(&mut index);
        }
        Ok(Arc::new(cache))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    /// The blob, verified and pinned, if it is here. Reads the whole file.
    pub fn lookup(self: &Arc<Self>, blob: &BlobRef) -> Option<Pinned> {
        let pinned = self.pin(&blob.digest)?;
        let hash = File::open(pinned.path()).and_then(|file| {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(file)?;
            Ok(hasher.finalize())
        });
        if hash.is_ok_and(|hash| *hash.as_bytes() == blob.digest.0) {
            return Some(pinned);
        }
        tracing::warn!("cached checkpoint {} is damaged and fetched again", pinned.path().display());
        self.forget(&blob.digest);
        None
    }

    fn pin(self: &Arc<Self>, digest: &Digest) -> Option<Pinned> {
        let mut index = lock(&self.index);
        index.clock += 1;
        let clock = index.clock;
        let entry = index.entries.get_mut(digest)?;
        entry.used = clock;
        entry.pins += 1;
        Some(Pinned { cache: self.clone(), digest: *digest, path: self.path(digest) })
    }

    fn unpin(&self, digest: &Digest) {
        let mut index = lock(&self.index);
        if let Some(entry) = index.entries.get_mut(digest) {
            entry.pins -= 1;
            if entry.pins == 0 && entry.bytes == 0 {
                index.remove(digest);
                let _ = std::fs::remove_file(self.path(digest));
            }
        }
        self.evict(&mut index);
    }

    /// Removes the file and counts none of its bytes; whoever still reads it keeps the open file. The entry goes with
    /// its last pin.
    fn forget(&self, digest: &Digest) {
        let mut index = lock(&self.index);
        if let Some(entry) = index.entries.get_mut(digest) {
            let bytes = std::mem::take(&mut entry.bytes);
            index.bytes -= bytes;
        }
        let _ = std::fs::remove_file(self.path(digest));
    }

    fn evict(&self, index: &mut Index) {
        while index.bytes > self.limit {
            let idle = index.entries.iter().filter(|(_, e)| e.pins == 0).min_by_key(|(_, e)| e.used);
            let Some(digest) = idle.map(|(digest, _)| *digest) else { return };
            index.remove(&digest);
            if let Err(e) = std::fs::remove_file(self.path(&digest)) {
                tracing::warn!("cannot remove {}: {e}", self.path(&digest).display());
            }
        }
    }

    /// A new blob, to be written and then [kept](Draft::keep).
    pub fn draft(self: &Arc<Self>) -> io::Result<Draft> {
        let number = {
            let mut index = lock(&self.index);
            index.drafts += 1;
            index.drafts
        };
        let path = self.folder.join(format!("draft-{number}{UNFINISHED}"));
        let file = File::create(&path)?;
        Ok(Draft {
            cache: self.clone(),
            path,
            file,
            whole: blake3::Hasher::new(),
            chunk: blake3::Hasher::new(),
            chunks: vec![],
        })
    }
}

impl Index {
    fn insert(&mut self, digest: Digest, bytes: u64) {
        self.clock += 1;
        self.bytes += bytes;
        let entry = self.entries.entry(digest).or_insert(Entry { bytes: 0, used: 0, pins: 0 });
        self.bytes -= entry.bytes;
        (entry.bytes, entry.used) = (bytes, self.clock);
    }

    fn remove(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.remove(digest) {
            self.bytes -= entry.bytes;
        }
    }
}

/// A blob that stays in the cache as long as this lives.
#[derive(Debug)]
pub struct Pinned {
    cache: Arc<Cache>,
    digest: Digest,
    path: PathBuf,
}

impl Pinned {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.cache.unpin(&self.digest);
    }
}

/// A blob being written. Hashes as it goes; removed when dropped without having been kept.
#[derive(Debug)]
pub struct Draft {
    cache: Arc<Cache>,
    path: PathBuf,
    file: File,
    whole: blake3::Hasher,
    /// Of the chunk that is being filled.
    chunk: blake3::Hasher,
    /// Of the full chunks.
    chunks: Vec<Digest>,
}

/// What a blob is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub blob: BlobRef,
    /// Hashes of its pieces of [`CHUNK_BYTES`]; the last may be shorter.
    pub chunks: Vec<Digest>,
}

impl Draft {
    fn manifest(&self) -> Manifest {
        let mut chunks = self.chunks.clone();
        if self.chunk.count() > 0 {
            chunks.push(Digest(*self.chunk.finalize().as_bytes()));
        }
        let digest = Digest(*self.whole.finalize().as_bytes());
        Manifest { blob: BlobRef { digest, bytes: self.whole.count() }, chunks }
    }

    /// What was written so far.
    pub fn blob(&self) -> BlobRef {
        self.manifest().blob
    }

    /// Makes what was written an entry of the cache.
    pub fn keep(self) -> io::Result<(Manifest, Pinned)> {
        let manifest = self.manifest();
        let cache = self.cache.clone();
        let BlobRef { digest, bytes } = manifest.blob;
        // Under the lock, so that an eviction of an older copy cannot hit the new file.
        let mut index = lock(&cache.index);
        std::fs::rename(&self.path, cache.path(&digest))?;
        index.insert(digest, bytes);
        if let Some(entry) = index.entries.get_mut(&digest) {
            entry.pins += 1;
        }
        cache.evict(&mut index);
        drop(index);
        let path = cache.path(&digest);
        Ok((manifest, Pinned { cache, digest, path }))
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - self.chunk.count() as usize;
        let written = self.file.write(&bytes[..bytes.len().min(room)])?;
        self.whole.update(&bytes[..written]);
        self.chunk.update(&bytes[..written]);
        if written == room {
            self.chunks.push(Digest(*self.chunk.finalize().as_bytes()));
            self.chunk.reset();
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already when it was kept.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(cache: &Arc<Cache>, bytes: &[u8]) -> (BlobRef, Pinned) {
        let mut draft = cache.draft().unwrap();
        draft.write_all(bytes).unwrap();
        let (manifest, pinned) = draft.keep().unwrap();
        (manifest.blob, pinned)
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_manifest_names_the_hash_of_every_chunk_and_of_the_whole() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path(), 1 << 30).unwrap();
        for length in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let bytes: Vec<u8> = (0..length).map(|i| (i / 7) as u8).collect();
            let mut draft = cache.draft().unwrap();
            draft.write_all(&bytes).unwrap();
            let (manifest, pinned) = draft.keep().unwrap();
            let hash = |bytes: &[u8]| Digest(*blake3::hash(bytes).as_bytes());
            assert_eq!(manifest.blob, BlobRef { digest: hash(&bytes), bytes: length as u64 });
            assert_eq!(manifest.chunks, bytes.chunks(CHUNK_BYTES).map(hash).collect::<Vec<_>>());
            assert_eq!(std::fs::read(pinned.path()).unwrap(), bytes);
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_pinned_blobs_stay() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path(), 25).unwrap();
        let (a, a_pin) = store(&cache, &[1; 10]);
        let (b, _) = store(&cache, &[2; 10]);
        let (c, _) = store(&cache, &[3; 10]);
        assert!(cache.lookup(&b).is_none(), "a is pinned, so b had to go");
        assert!(cache.lookup(&c).is_some());
        drop(a_pin);
        assert!(cache.lookup(&a).is_some());
        store(&cache, &[4; 10]);
        assert!(cache.lookup(&c).is_none() && cache.lookup(&a).is_some());
        assert_eq!(files(temp.path()), 2);
    }

    #[test]
    fn a_damaged_entry_is_not_handed_out() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path(), 100).unwrap();
        let (blob, pin) = store(&cache, &[1; 10]);
        std::fs::write(pin.path(), [1; 9]).unwrap();
        drop(pin);
        assert!(cache.lookup(&blob).is_none());
        assert_eq!(files(temp.path()), 0);
        let (again, _) = store(&cache, &[1; 10]);
        assert!(cache.lookup(&again).is_some());
    }

    #[test]
    fn drafts_leave_nothing_and_a_later_process_finds_the_rest() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path(), 100).unwrap();
        drop(cache.draft().unwrap());
        assert_eq!(files(temp.path()), 0);
        let (blob, _) = store(&cache, &[1; 10]);
        std::fs::write(temp.path().join("draft-7.tmp"), "half").unwrap();
        let later = Cache::open(temp.path(), 100).unwrap();
        assert_eq!(files(temp.path()), 1);
        assert!(later.lookup(&blob).is_some());
    }
}
