//! One file, from the hub to its place: broken off and resumed, compared, and put there whole.

use crate::{
    HubError, Watch,
    name::Name,
    remote::{About, Remote},
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

/// Bytes between the network and the disk.
const PIECE: usize = 256 << 10;

/// A SHA-256 in hexadecimal digits: what the hub names large files by.
const SHA256_DIGITS: usize = 64;

/// A file of a commit.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub name: &'a Name,
    pub commit: &'a str,
    pub file: &'a str,
    pub about: &'a About,
}

/// Has the file at `path` the size that the hub says?
pub(crate) fn is_whole(path: &Path, about: &About) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == about.size)
}

/// Brings the content to `blob`, beside which it grows under another name.
pub(crate) fn bring(remote: &Remote, wanted: Wanted<'_>, blob: &Path, watch: &mut dyn Watch) -> Result<(), HubError> {
    let part = blob.with_extension("incomplete");
    let mut file = OpenOptions::new().create(true).append(true).open(&part).map_err(HubError::disk(&part))?;
    receive(remote, wanted, &part, &mut file, watch)?;
    file.sync_all().map_err(HubError::disk(&part))?;
    drop(file);
    if let Some(reason) = difference(&part, wanted.about)? {
        fs::remove_file(&part).map_err(HubError::disk(&part))?;
        return Err(HubError::Damaged { file: wanted.file.to_owned(), reason });
    }
    fs::rename(&part, blob).map_err(HubError::disk(blob))
}

/// Appends until all is there. A connection that breaks is opened again, as long as each brings something.
fn receive(
    remote: &Remote,
    wanted: Wanted<'_>,
    part: &Path,
    file: &mut File,
    watch: &mut dyn Watch,
) -> Result<(), HubError> {
    let size = wanted.about.size;
    let mut have = file.metadata().map_err(HubError::disk(part))?.len();
    if have > size {
        file.set_len(0).map_err(HubError::disk(part))?;
        have = 0;
    }
    watch.begins(wanted.file, size, have);
    while have < size {
        let before = have;
        let ended = append(remote, wanted, (part, file), &mut have, watch);
        match ended {
            Err(error) if !error.is_passing() || matches!(error, HubError::Stopped) => return Err(error),
            Err(error) if have <= before => return Err(error),
            Ok(()) if have <= before => {
                return Err(remote.broken(&std::io::Error::other(format!("{have} bytes of {size} came"))));
            }
            _ => {}
        }
    }
    Ok(())
}

/// One connection's worth; `have` counts what is in the file.
fn append(
    remote: &Remote,
    wanted: Wanted<'_>,
    (part, file): (&Path, &mut File),
    have: &mut u64,
    watch: &mut dyn Watch,
) -> Result<(), HubError> {
    if watch.stops() {
        return Err(HubError::Stopped);
    }
    let Wanted { name, commit, file: shown, about } = wanted;
    let (goes_on, mut content) = remote.content(name, commit, shown, *have)?;
    if !goes_on && *have > 0 {
        file.set_len(0).map_err(HubError::disk(part))?;
        *have = 0;
        watch.begins(shown, about.size, 0);
    }
    let mut piece = vec![0; PIECE];
    loop {
        if watch.stops() {
            return Err(HubError::Stopped);
        }
        let read = content.read(&mut piece).map_err(|e| remote.broken(&e))?;
        if read == 0 {
            return Ok(());
        }
        let most = usize::try_from(about.size - *have).unwrap_or(usize::MAX);
        if read > most {
            // What follows the announced end is nothing that the digest below would take.
            file.set_len(0).map_err(HubError::disk(part))?;
            let reason = format!("more than {} bytes", about.size);
            return Err(HubError::Damaged { file: shown.to_owned(), reason });
        }
        file.write_all(&piece[..read]).map_err(HubError::disk(part))?;
        *have += read as u64;
        watch.received(read as u64);
    }
}

/// What is wrong with a file; none where it is as announced. Small files have a digest of git's, which is not computed.
fn difference(path: &Path, about: &About) -> Result<Option<String>, HubError> {
    if about.etag.len() != SHA256_DIGITS {
        return Ok(None);
    }
    let mut file = File::open(path).map_err(HubError::disk(path))?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).map_err(HubError::disk(path))?;
        if read == 0 {
            break;
        }
        hasher.update(&piece[..read]);
    }
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((found != about.etag).then(|| format!("SHA-256 {found}, announced {}", about.etag)))
}
