//! Safetensors files of a folder: one, or several with an index.
//!
//! Headers are read and checked when the folder is opened; tensors when they are asked for, piece by piece into their own
//! memory, so that loading needs no more than the weights themselves.

use super::{LoadError, Weights};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::{Dtype, tensor::TensorInfo};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Elements that are read and converted at a time.
const PIECE: usize = 1 << 16;

/// No header is longer; the reference implementation has the same limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// The tensors of a folder: where each lies, and the open files.
pub(super) struct Shards {
    files: Vec<(PathBuf, File)>,
    places: BTreeMap<String, Place>,
    shapes: BTreeMap<String, Vec<usize>>,
}

struct Place {
    file: usize,
    dtype: Dtype,
    /// From the beginning of the file.
    offset: u64,
}

impl Shards {
    /// Opens `model.safetensors`, or else all files of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// Where there is neither, a shard is missing, or a file is damaged or cut short.
    pub(super) fn open(folder: &Path) -> Result<Self, LoadError> {
        let mut shards = Self { files: Vec::new(), places: BTreeMap::new(), shapes: BTreeMap::new() };
        if folder.join(SINGLE).exists() {
            shards.add(folder.join(SINGLE))?;
            return Ok(shards);
        }
        let index = folder.join(INDEX);
        if !index.exists() {
            return Err(LoadError::BadFolder { path: folder.to_owned(), reason: no_weights(folder) });
        }
        let listed = Index::read(&index)?;
        for name in &listed.shards {
            shards.add(folder.join(name))?;
        }
        shards.check_index(&index, &listed)?;
        Ok(shards)
    }

    /// Paths of all files, in the order of their names.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    pub(super) fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// These tensors in `dtype`.
    pub(super) fn reader(&self, dtype: DType) -> Reader<'_> {
        Reader { shards: self, dtype }
    }

    fn add(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let file = File::open(&path).map_err(LoadError::io(&path))?;
        let (start, tensors) = read_header(&path, &file)?;
        for (name, TensorInfo { dtype, shape, data_offsets }) in tensors {
            let offset = start + data_offsets.0 as u64;
            let before = self.places.insert(name.clone(), Place { file: self.files.len(), dtype, offset });
            if let Some(before) = before {
                let reason = format!("has the tensor `{name}`, which {} has too", self.files[before.file].0.display());
                return Err(LoadError::BadFile { path, reason });
            }
            self.shapes.insert(name, shape);
        }
        self.files.push((path, file));
        Ok(())
    }

    /// Every tensor must be in the shard that the index says.
    fn check_index(&self, index: &Path, listed: &Index) -> Result<(), LoadError> {
        for (tensor, shard) in &listed.tensors {
            let place = self.places.get(tensor).map(|place| self.files[place.file].0.as_path());
            if place.and_then(Path::file_name).is_none_or(|name| name != shard.as_str()) {
                let path = index.with_file_name(shard);
                let reason = format!("lacks the tensor `{tensor}`, which {INDEX} says is in it");
                return Err(LoadError::BadFile { path, reason });
            }
        }
        Ok(())
    }
}

/// What `model.safetensors.index.json` says.
struct Index {
    tensors: BTreeMap<String, String>,
    shards: BTreeSet<String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Contents {
            weight_map: BTreeMap<String, String>,
        }
        let bytes = std::fs::read(path).map_err(LoadError::io(path))?;
        let bad = |reason| LoadError::BadFile { path: path.to_owned(), reason };
        let contents: Contents = serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not an index: {e}")))?;
        let shards: BTreeSet<String> = contents.weight_map.values().cloned().collect();
        if let Some(name) = shards.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
            return Err(bad(format!("lists `{name}`, which is not the plain name of a file")));
        }
        let missing: Vec<String> = shards.iter().filter(|name| !path.with_file_name(name).exists()).cloned().collect();
        if !missing.is_empty() {
            return Err(LoadError::MissingShards { index: path.to_owned(), missing });
        }
        Ok(Self { tensors: contents.weight_map, shards })
    }
}

/// Where the data begins, and all tensors by name with offsets from there.
fn read_header(path: &Path, mut file: &File) -> Result<(u64, BTreeMap<String, TensorInfo>), LoadError> {
    let bad = |reason: String| LoadError::BadFile { path: path.to_owned(), reason };
    let size = file.metadata().map_err(LoadError::io(path))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| bad(format!("is cut short: it has {size} bytes")))?;
    if length == *b"version " {
        return Err(bad("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".into()));
    }
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(bad("is not a safetensors file: its first eight bytes are no header's length".into()));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|_| bad(format!("is cut short within its header: it has {size} bytes")))?;
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|e| bad(format!("is not an intact safetensors file: {e}")))?;
    entries.remove("__metadata__");
    let mut tensors = BTreeMap::new();
    let mut end = 0;
    for (name, entry) in entries {
        let info: TensorInfo =
            serde_json::from_value(entry).map_err(|e| bad(format!("describes `{name}` in a way unknown here: {e}")))?;
        let (from, to) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, n| bits.checked_mul(*n));
        if to < from || bits != (to - from).checked_mul(8) {
            return Err(bad(format!("gives `{name}` {} bytes, which do not fit its shape", to.saturating_sub(from))));
        }
        end = end.max(to as u64);
        tensors.insert(name, info);
    }
    let (start, wanted) = (8 + length, 8 + length + end);
    match size {
        _ if size < wanted => Err(bad(format!("is cut short: it has {size} bytes where its header promises {wanted}"))),
        _ => Ok((start, tensors)),
    }
}

/// What to say where there are no safetensors files.
fn no_weights(folder: &Path) -> String {
    let pickled = std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".index.json"))
    });
    match pickled {
        true => "has its weights as pytorch_model.bin only, which is not read here; convert them with transformers: \
                 AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
            .to_owned(),
        false => format!("has no weights: neither {SINGLE} nor {INDEX}"),
    }
}

/// The tensors of [`Shards`] in one type.
pub(super) struct Reader<'a> {
    shards: &'a Shards,
    dtype: DType,
}

impl Weights for Reader<'_> {
    fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shards.shapes
    }

    fn file(&self, name: &str) -> PathBuf {
        let files = &self.shards.files;
        match self.shards.places.get(name) {
            Some(place) => files[place.file].0.clone(),
            None if files.len() == 1 => files[0].0.clone(),
            None => files[0].0.with_file_name(INDEX),
        }
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Tensor, LoadError> {
        match self.dtype {
            DType::F64 => self.read_as::<f64>(name, rows),
            DType::F32 => self.read_as::<f32>(name, rows),
            DType::BF16 => self.read_as::<bf16>(name, rows),
            DType::F16 => self.read_as::<f16>(name, rows),
            other => Err(candle_core::Error::Msg(format!("models are held in f32, bf16 or f16, not {other:?}")).into()),
        }
    }

    fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Reader<'_> {
    fn read_as<T: Value>(&self, name: &str, rows: Range<usize>) -> Result<Tensor, LoadError> {
        let (place, shape) = (&self.shards.places[name], &self.shards.shapes[name]);
        let (path, file) = &self.shards.files[place.file];
        let convert: fn(&[u8], &mut [T]) = match place.dtype {
            same if same == T::STORED => T::copy,
            Dtype::F64 => |bytes, out| each(bytes, out, |b| T::of(f64::from_le_bytes(b))),
            Dtype::F32 => |bytes, out| each(bytes, out, |b| T::of(f32::from_le_bytes(b).into())),
            Dtype::BF16 => |bytes, out| each(bytes, out, |b| T::of(bf16::from_le_bytes(b).into())),
            Dtype::F16 => |bytes, out| each(bytes, out, |b| T::of(f16::from_le_bytes(b).into())),
            other => {
                let reason = format!("has `{name}` as {other:?}; F64, F32, F16 and BF16 are read");
                return Err(LoadError::BadFile { path: path.clone(), reason });
            }
        };
        let size = place.dtype.bitsize() / 8;
        let row: usize = shape.iter().skip(1).product();
        let start = place.offset + (rows.start * row * size) as u64;
        let mut values = vec![T::of(0.0); rows.len() * row];
        values
            .par_chunks_mut(PIECE)
            .enumerate()
            .try_for_each(|(i, piece)| {
                let mut bytes = vec![0; piece.len() * size];
                file.read_exact_at(&mut bytes, start + (i * PIECE * size) as u64)?;
                convert(&bytes, piece);
                Ok(())
            })
            .map_err(LoadError::io(path))?;
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(shape.iter().skip(1).copied()).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

/// An element of a tensor in memory.
trait Value: WithDType {
    /// What it is called in a file.
    const STORED: Dtype;

    fn of(value: f64) -> Self;

    /// From a file that has them as they are: nothing is converted.
    fn copy(bytes: &[u8], out: &mut [Self]);
}

macro_rules! values {
    ($($value:ty => $stored:ident),*) => {
        $(impl Value for $value {
            const STORED: Dtype = Dtype::$stored;

            fn of(value: f64) -> Self {
                Self::from_f64(value)
            }

            fn copy(bytes: &[u8], out: &mut [Self]) {
                each(bytes, out, Self::from_le_bytes);
            }
        })*
    };
}

values!(f64 => F64, f32 => F32, bf16 => BF16, f16 => F16);

fn each<T, const N: usize>(bytes: &[u8], out: &mut [T], convert: impl Fn([u8; N]) -> T) {
    let (values, _) = bytes.as_chunks::<N>();
    for (out, value) in out.iter_mut().zip(values) {
        *out = convert(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tensor `w` of two rows.
    fn file(folder: &Path, dtype: &str, bytes: &[u8]) {
        let elements = bytes.len() / 2 / if dtype == "F32" { 4 } else { 2 };
        let header =
            serde_json::json!({"w": {"dtype": dtype, "shape": [2, elements], "data_offsets": [0, bytes.len()]}});
        let header = header.to_string();
        let all = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), bytes].concat();
        std::fs::write(folder.join(SINGLE), all).expect("writes");
    }

    /// By way of a wider type the payload of a signalling NaN would change.
    #[test]
    fn what_has_the_wanted_type_keeps_every_bit() {
        let folder = tempfile::tempdir().expect("a folder");
        let halves = [0x0001u16, 0x8000, 0x7f81, 0xff80, 0x3f80, 0x7fc1];
        file(folder.path(), "BF16", &halves.map(u16::to_le_bytes).concat());
        let read = |dtype, rows| {
            let shards = Shards::open(folder.path()).expect("opens");
            shards.reader(dtype).read("w", rows).expect("reads").flatten_all().expect("flattens")
        };
        let bits = |rows| read(DType::BF16, rows).to_vec1::<bf16>().expect("values").into_iter().map(bf16::to_bits);
        assert_eq!(bits(0..2).collect::<Vec<_>>(), halves);
        assert_eq!(bits(1..2).collect::<Vec<_>>(), halves[3..]);
        assert_eq!(read(DType::F32, 1..2).to_vec1::<f32>().expect("values")[..2], [f32::NEG_INFINITY, 1.0]);
        let singles = [0x0000_0001u32, 0x7f80_0001, 0x8000_0000, 0x3f80_0001];
        file(folder.path(), "F32", &singles.map(u32::to_le_bytes).concat());
        let values = read(DType::F32, 0..2).to_vec1::<f32>().expect("values");
        assert_eq!(values.into_iter().map(f32::to_bits).collect::<Vec<_>>(), singles);
    }
}
