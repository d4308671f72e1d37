//! The bytes of a safetensors file: eight bytes of header length, a JSON header, the tensors one after the other.
//!
//! Written here rather than by the `safetensors` crate, which keeps metadata in a hash map (the order of its entries, and
//! so the file's digest, would change from run to run) and wants whole tensors as bytes. Read by the crate, which checks.

use crate::ScienceError;
use candle_core::{CpuStorage, Device, Storage, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use serde::{Serialize, de::DeserializeOwned, ser::SerializeMap};
use std::{collections::BTreeMap, io::Write};

/// Bytes converted at a time: constant memory, whatever the size of a tensor.
const BUFFER: usize = 64 * 1024;

/// Metadata key of our header; a string of JSON, as safetensors allows only strings.
const KEY: &str = "taskvec";

/// Writes f32 tensors, sorted by name, and what the file says about itself.
pub(crate) fn write(
    out: &mut dyn Write,
    header: &impl Serialize,
    mut tensors: Vec<(String, &Tensor)>,
) -> Result<(), ScienceError> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut json = serde_json::to_vec(&FileHeader { header, tensors: &tensors }).map_err(std::io::Error::from)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    out.write_all(&(json.len() as u64).to_le_bytes())?;
    out.write_all(&json)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    for (_, tensor) in tensors {
        write_values(out, tensor, &mut buffer)?;
    }
    Ok(())
}

fn write_values(out: &mut dyn Write, tensor: &Tensor, buffer: &mut Vec<u8>) -> Result<(), ScienceError> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(candle_core::Error::Msg("checkpoints hold f32 tensors on the CPU".into()).into());
    };
    let values = &values[layout.start_offset()..][..layout.shape().elem_count()];
    for part in values.chunks(BUFFER / 4) {
        buffer.clear();
        buffer.extend(part.iter().flat_map(|v| v.to_le_bytes()));
        out.write_all(buffer)?;
    }
    Ok(())
}

/// The JSON header, in a fixed order.
struct FileHeader<'a, H> {
    header: &'a H,
    tensors: &'a [(String, &'a Tensor)],
}

impl<H: Serialize> Serialize for FileHeader<'_, H> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let ours = serde_json::to_string(self.header).map_err(serde::ser::Error::custom)?;
        let mut map = s.serialize_map(Some(self.tensors.len() + 1))?;
        // `format: pt` is what HuggingFace's readers look for.
        map.serialize_entry("__metadata__", &BTreeMap::from([("format", "pt"), (KEY, &ours)]))?;
        let mut offset = 0;
        for (name, tensor) in self.tensors {
            let end = offset + 4 * tensor.elem_count();
            let info = TensorEntry { dtype: "F32", shape: tensor.dims(), data_offsets: [offset, end] };
            map.serialize_entry(name, &info)?;
            offset = end;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct TensorEntry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

/// A file's tensors by name; each is taken once. Errors are reasons, without the path.
pub(crate) struct Contents<'a> {
    metadata: Metadata,
    tensors: BTreeMap<String, safetensors::tensor::TensorView<'a>>,
}

impl<'a> Contents<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let damaged = |e| format!("is not an intact safetensors file: {e}");
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?.tensors().into_iter().collect();
        Ok(Self { metadata, tensors })
    }

    /// What the file says about itself.
    pub(crate) fn header<H: DeserializeOwned>(&self) -> Result<H, String> {
        let text = self.metadata.metadata().as_ref().and_then(|m| m.get(KEY));
        let text = text.ok_or("was not written by taskvec: its metadata has no entry `taskvec`")?;
        serde_json::from_str(text).map_err(|e| format!("has a header that cannot be read: {e}"))
    }

    /// Removes a tensor and returns its values.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, String> {
        let view = self.tensors.remove(name).ok_or_else(|| format!("lacks the tensor `{name}`"))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            let (dtype, found) = (view.dtype(), view.shape());
            return Err(format!("has `{name}` as {dtype:?} {found:?} where F32 {shape:?} is wanted"));
        }
        let (words, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
        Tensor::from_vec(values, shape, device).map_err(|e| format!("`{name}`: {e}"))
    }

    pub(crate) fn nothing_left(&self) -> Result<(), String> {
        match self.tensors.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("has a tensor that does not belong in it: `{name}`")),
        }
    }
}
