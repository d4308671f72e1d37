//! Access to tensors' memory, and new memory that is not zeroed before it is overwritten.
//!
//! Most operations read contiguous tensors. Those of language models also take [`Rows`] that lie apart, such as one
//! half of a wider matrix, without a copy.

use crate::{float::Float, weight::Brain};
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, WithDType, backend::BackendStorage};
use std::mem::MaybeUninit;

/// The elements of a contiguous tensor on the CPU.
pub fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => candle_core::bail!("a kernel was given a strided tensor {layout:?}; make it contiguous first"),
    }
}

/// The elements of a contiguous tensor in bf16 on the CPU.
pub fn brains<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [Brain]> {
    let CpuStorage::BF16(data) = storage else {
        candle_core::bail!("a kernel was given {:?} for bf16", storage.dtype());
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a kernel was given a strided tensor {layout:?}; make it contiguous first");
    };
    let data = &data[start..end];
    // SAFETY: `half::bf16` is a transparent u16, as `Brain` is.
    Ok(unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) })
}

pub fn stored_brains(data: Vec<Brain>) -> CpuStorage {
    let mut data = std::mem::ManuallyDrop::new(data);
    // SAFETY: as above; the memory changes its owner.
    CpuStorage::BF16(unsafe { Vec::from_raw_parts(data.as_mut_ptr().cast(), data.len(), data.capacity()) })
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

/// Equally long rows, each contiguous, at equal distances.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    data: &'a [T],
    pub count: usize,
    pub width: usize,
    stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// Rows without gaps.
    pub fn dense(data: &'a [T], width: usize) -> Self {
        Self { data, count: data.len().checked_div(width).unwrap_or(0), width, stride: width }
    }

    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [T] {
        &self.data[i * self.stride..][..self.width]
    }
}

/// The distance of rows that each consist of the last `inner` dimensions, if these are contiguous and the rows regular.
pub fn row_stride(layout: &Layout, inner: usize) -> Option<usize> {
    let lead = layout.dims().len().checked_sub(inner)?;
    let (dims, strides) = (layout.dims(), layout.stride());
    let mut dense = 1;
    for (&dim, &stride) in dims[lead..].iter().zip(&strides[lead..]).rev() {
        if dim != 1 && stride != dense {
            return None;
        }
        dense *= dim;
    }
    let mut lead = dims[..lead].iter().zip(&strides[..lead]).filter(|(dim, _)| **dim != 1).rev();
    let Some((&dim, &stride)) = lead.next() else { return Some(dense) };
    let mut next = stride * dim;
    for (&dim, &stride) in lead {
        if stride != next {
            return None;
        }
        next = stride * dim;
    }
    Some(stride)
}

/// The tensor itself where it is made of [`Rows`], else a contiguous copy.
pub fn in_rows(x: &Tensor, inner: usize) -> Result<Tensor> {
    if row_stride(x.layout(), inner).is_some() { Ok(x.clone()) } else { x.contiguous() }
}

/// The rows of a tensor from `in_rows`.
pub fn rows<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout, inner: usize) -> Result<Rows<'a, T>> {
    let Some(stride) = row_stride(layout, inner) else {
        candle_core::bail!("a kernel was given a tensor without regular rows {layout:?}; make it contiguous first");
    };
    let (lead, inner) = layout.dims().split_at(layout.dims().len() - inner);
    let (count, width) = (lead.iter().product(), inner.iter().product());
    Ok(Rows { data: &T::cpu_storage_as_slice(storage)?[layout.start_offset()..], count, width, stride })
}

/// The same for a storage that may be anywhere.
pub fn cpu_rows<'a, T: WithDType>(storage: &'a Storage, layout: &Layout, inner: usize) -> Result<Rows<'a, T>> {
    match storage {
        Storage::Cpu(storage) => rows(storage, layout, inner),
        _ => candle_core::bail!("this kernel runs on the CPU only"),
    }
}

/// Binds the rows of tensors: `read_rows!(x, y: T, 1);` makes [`Rows`] of the tensors of these names.
macro_rules! read_rows {
    ($($name:ident),+ : $T:ty, $inner:expr) => {
        $(
            let (guard, layout) = $name.storage_and_layout();
            let $name = $crate::buffer::cpu_rows::<$T>(&guard, layout, $inner)?;
        )+
    };
}
pub(crate) use read_rows;

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

/// The same memory for functions that write every element without reading any.
pub fn unread<T: Float>(out: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: the layout is the same, and the functions of this crate that are given it write values and nothing else.
    unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) }
}
