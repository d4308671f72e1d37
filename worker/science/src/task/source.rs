//! Texts from a file, a zip archive or a folder, within limits.

use super::TaskError;
use std::{
    fs::{self, File},
    io::{Cursor, Read},
    path::{Path, PathBuf},
};
use taskvec_model::{id::Digest, spec::DataFile};

/// Most bytes of one corpus or table, unpacked.
const MAX_BYTES: u64 = 256 << 20;
/// Most files of a folder or members of an archive that are looked at.
const MAX_FILES: usize = 100_000;
/// Deepest folder below the one named: symbolic links may lead in circles.
const MAX_DEPTH: usize = 8;

/// Which files of a folder or archive are read.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) is: fn(&str) -> bool,
    /// For the error where there is none.
    pub(super) shown: &'static str,
}

/// One file with its text.
#[derive(Debug)]
pub(super) struct Text {
    /// As given, with the path within a folder or archive after it.
    pub(super) name: String,
    pub(super) text: String,
}

/// The texts of a file (whatever its name), or those of a folder's files and an archive's members whose names are
/// `wanted`, by name. A digest that was planned is compared with what is found.
///
/// # Errors
/// [`TaskError::Read`], [`TaskError::Unusable`] (too large, not UTF-8, nothing that is wanted) and [`TaskError::Changed`].
pub(super) fn read(file: &DataFile, wanted: Wanted) -> Result<Vec<Text>, TaskError> {
    let path = Path::new(&file.path);
    let raw = Raw::read(path, wanted)?;
    let found = raw.digest();
    match file.digest {
        Some(planned) if planned != found => Err(TaskError::Changed { path: path.to_owned(), found, planned }),
        _ => raw.texts(path, wanted),
    }
}

/// What a file is known by: BLAKE3 of its bytes; of a folder, BLAKE3 over name and contents (each with its length
/// before it, 8 bytes, little-endian) of the files that would be read, by name.
///
/// # Errors
/// [`TaskError::Read`], and [`TaskError::Unusable`] where it is too large.
pub(super) fn digest(file: &DataFile, wanted: Wanted) -> Result<Digest, TaskError> {
    Ok(Raw::read(Path::new(&file.path), wanted)?.digest())
}

/// Bytes as they lie on the disk.
enum Raw {
    File(Vec<u8>),
    /// Paths below the folder, with `/` between their parts.
    Folder(Vec<(String, Vec<u8>)>),
}

impl Raw {
    fn read(path: &Path, wanted: Wanted) -> Result<Self, TaskError> {
        let mut left = MAX_BYTES;
        if !metadata(path)?.is_dir() {
            return Ok(Self::File(bytes(path, path, &mut left)?));
        }
        let mut names = Vec::new();
        walk(path, &mut Vec::new(), &mut names)?;
        names.retain(|name| (wanted.is)(name));
        names.sort_unstable();
        let read = |name: String| bytes(&path.join(&name), path, &mut left).map(|bytes| (name, bytes));
        Ok(Self::Folder(names.into_iter().map(read).collect::<Result<_, _>>()?))
    }

    fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        match self {
            Self::File(bytes) => {
                hasher.update(bytes);
            }
            Self::Folder(files) => {
                for part in files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes]) {
                    hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
                }
            }
        }
        Digest(*hasher.finalize().as_bytes())
    }

    fn texts(self, path: &Path, wanted: Wanted) -> Result<Vec<Text>, TaskError> {
        let shown = path.display();
        let files = match self {
            Self::File(bytes) if bytes.starts_with(b"PK\x03\x04") => unpacked(path, bytes, wanted)?,
            Self::File(bytes) => return Ok(vec![Text { name: shown.to_string(), text: decoded(path, bytes)? }]),
            Self::Folder(files) => files,
        };
        if files.is_empty() {
            return Err(unusable(path, format!("holds no {}", wanted.shown)));
        }
        let text =
            |(name, bytes)| Ok(Text { name: format!("{shown}/{name}"), text: decoded(&path.join(&name), bytes)? });
        files.into_iter().map(text).collect()
    }
}

/// The names of all files below `folder`, hidden ones left out. `below` is where the walk is.
fn walk(folder: &Path, below: &mut Vec<String>, names: &mut Vec<String>) -> Result<(), TaskError> {
    let here: PathBuf = below.iter().fold(folder.to_owned(), |path, part| path.join(part));
    let failed = |source| TaskError::Read { path: here.clone(), source };
    for entry in fs::read_dir(&here).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A name that is not Unicode is not one of ours.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_hidden(&name) {
            continue;
        }
        below.push(name);
        if metadata(&entry.path())?.is_dir() {
            if below.len() > MAX_DEPTH {
                return Err(unusable(&entry.path(), format!("lies more than {MAX_DEPTH} folders deep")));
            }
            walk(folder, below, names)?;
        } else {
            names.push(below.join("/"));
        }
        below.pop();
        if names.len() > MAX_FILES {
            return Err(unusable(
                folder,
                format!("holds more than {MAX_FILES} files; name the folder of the data alone"),
            ));
        }
    }
    Ok(())
}

/// The members of an archive that are wanted, by name.
fn unpacked(path: &Path, bytes: Vec<u8>, wanted: Wanted) -> Result<Vec<(String, Vec<u8>)>, TaskError> {
    let broken = |e: zip::result::ZipError| unusable(path, format!("cannot be unpacked: {e}"));
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    if archive.len() > MAX_FILES {
        return Err(unusable(path, format!("holds more than {MAX_FILES} files")));
    }
    let (mut files, mut left) = (Vec::new(), MAX_BYTES);
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(broken)?;
        let name = member.name().map_err(broken)?.into_owned();
        if member.is_file() && !is_hidden(&name) && (wanted.is)(&name) {
            let bytes = limited(&mut member, &mut left).map_err(|e| e.at(&path.join(&name), path))?;
            files.push((name, bytes));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Files that programs leave beside the data.
fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.') || part == "__MACOSX")
}

/// The bytes of a file, taken off what is `left` for all of `whole`.
fn bytes(path: &Path, whole: &Path, left: &mut u64) -> Result<Vec<u8>, TaskError> {
    let read = File::open(path).map_err(ReadError::Io).and_then(|file| limited(file, left));
    read.map_err(|e| e.at(path, whole))
}

enum ReadError {
    Io(std::io::Error),
    TooLarge,
}

impl ReadError {
    fn at(self, path: &Path, whole: &Path) -> TaskError {
        match self {
            Self::Io(source) => TaskError::Read { path: path.to_owned(), source },
            Self::TooLarge => unusable(whole, format!("holds more than {} MiB of data", MAX_BYTES >> 20)),
        }
    }
}

/// Reads to the end. Sizes that headers state are not believed: an archive may unpack to anything.
fn limited(reader: impl Read, left: &mut u64) -> Result<Vec<u8>, ReadError> {
    let mut out = Vec::new();
    reader.take(*left + 1).read_to_end(&mut out).map_err(ReadError::Io)?;
    *left = left.checked_sub(out.len() as u64).ok_or(ReadError::TooLarge)?;
    Ok(out)
}

/// UTF-8, without the mark that some programs put before it.
fn decoded(path: &Path, bytes: Vec<u8>) -> Result<String, TaskError> {
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count();
        unusable(path, format!("is not UTF-8 (line {line}); convert it, e.g. with iconv -t UTF-8"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn metadata(path: &Path) -> Result<fs::Metadata, TaskError> {
    fs::metadata(path).map_err(|source| TaskError::Read { path: path.to_owned(), source })
}

fn unusable(path: &Path, reason: impl Into<String>) -> TaskError {
    TaskError::Unusable { path: path.to_owned(), reason: reason.into() }
}
