//! Access to tensors' memory, and new memory that is not zeroed before it is overwritten.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, WithDType, backend::BackendStorage};
use std::mem::MaybeUninit;

/// The elements of a contiguous tensor on the CPU.
pub fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => candle_core::bail!("a kernel was given a strided tensor {layout:?}; make it contiguous first"),
    }
}

pub fn element_type(storage: &CpuStorage) -> DType {
    storage.dtype()
}

pub fn stored<T: WithDType>(data: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(data)
}

/// The same for a storage that may be anywhere.
pub fn cpu_elements<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => elements(storage, layout),
        _ => candle_core::bail!("this kernel runs on the CPU only"),
    }
}

/// Binds the elements of contiguous tensors: `read!(x, w: T);` makes slices of the tensors of these names.
macro_rules! read {
    ($($name:ident),+ : $T:ty) => {
        $(
            let (guard, layout) = $name.storage_and_layout();
            let $name = $crate::buffer::cpu_elements::<$T>(&guard, layout)?;
        )+
    };
}
pub(crate) use read;

/// Evaluates an expression with `T` as the element type that a `DType` names.
macro_rules! by_dtype {
    ($dtype:expr, $op:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("{}: f32 and f64 only, not {other:?}", $op),
        }
    };
}
pub(crate) use by_dtype;

/// A vector of `len` elements that `fill` writes.
///
/// # Safety
/// `fill` must write every element.
pub unsafe fn filled<T, R>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>]) -> R) -> (Vec<T>, R) {
    let mut out = Vec::with_capacity(len);
    let result = fill(&mut out.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is at least `len`, and the caller promises that `fill` has written all of it.
    unsafe { out.set_len(len) };
    (out, result)
}
