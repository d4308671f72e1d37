//! The operations on tensors that candle has on a GPU, in f32: launches of the same kernels, on candle's memory and its
//! stream. What else there is on a GPU, other types and matrix products, is candle's.
//!
//! Not yet run on a device.

mod attend;
mod layers;
mod loss;
mod product;
mod sequences;

pub(crate) use attend::{attend, attend_backward};
pub(crate) use layers::{
    gated, gated_backward, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward, rotate, rotate_back,
};
pub(crate) use loss::{cross_entropy, cross_entropy_backward};
pub(crate) use product::linear_t;
pub(crate) use sequences::{causal_attention, causal_attention_backward};

use super::{
    Bytes, Call,
    device::{Device, DeviceError, Place},
};
use candle_core::{
    CudaDevice, CudaStorage, DType, Error, Layout, Result, Shape, Storage, Tensor,
    cuda_backend::{CudaDType, DeviceId},
    op::BackpropOp,
};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};
use std::{
    collections::BTreeMap,
    ffi::c_void,
    sync::{Arc, Mutex, PoisonError},
};

/// GPU number `ordinal` as candle has it, the same for all who ask: all that happens on it is on one stream, in the order in
/// which it is asked for, whichever thread asks.
///
/// # Errors
/// No driver, no such GPU, no cuBLAS.
pub fn device(ordinal: usize) -> Result<candle_core::Device> {
    static DEVICES: Mutex<BTreeMap<usize, candle_core::Device>> = Mutex::new(BTreeMap::new());
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = devices.get(&ordinal) {
        return Ok(device.clone());
    }
    let device = candle_core::Device::new_cuda_with_stream(ordinal)?;
    devices.insert(ordinal, device.clone());
    Ok(device)
}

/// Bytes of its memory that nobody has.
///
/// # Errors
/// The driver's; a device that is no GPU.
pub fn free_bytes(device: &candle_core::Device) -> Result<u64> {
    let stream = device.as_cuda_device()?.cuda_stream();
    Ok(stream.context().mem_get_info().map_err(Error::wrap)?.0 as u64)
}

/// A tensor as operations are given it.
pub(crate) type Given<'a> = (&'a CudaStorage, &'a Layout);

/// Are our kernels made for such a tensor?
pub(crate) fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && x.dtype() == DType::F32
}

/// One of candle's devices, with our kernels on it.
pub(crate) struct Gpu {
    candle: CudaDevice,
    loaded: Arc<Loaded>,
}

/// What was loaded when the device was first asked for.
struct Loaded {
    id: DeviceId,
    ours: Device,
    spreads: attend::Spreads,
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        Self::msg(error)
    }
}

impl Gpu {
    fn of(candle: &CudaDevice) -> Result<Self> {
        static DEVICES: Mutex<Vec<Arc<Loaded>>> = Mutex::new(Vec::new());
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = devices.iter().find(|loaded| loaded.id == candle.id()).cloned();
        let loaded = match known {
            Some(loaded) => loaded,
            None => {
                let ours = Device::on(candle.cuda_stream())?;
                let loaded = Arc::new(Loaded { id: candle.id(), ours, spreads: attend::Spreads::default() });
                devices.push(loaded.clone());
                loaded
            }
        };
        Ok(Self { candle: candle.clone(), loaded })
    }

    fn of_tensor(x: &Tensor) -> Result<Self> {
        Self::of(x.device().as_cuda_device()?)
    }

    /// A tensor's memory from its first element on.
    fn from<'a, T: CudaDType + DeviceRepr + 'a>(&'a self, (storage, layout): Given<'a>) -> Result<Held<'a>> {
        let slice = storage.as_cuda_slice::<T>()?;
        let (pointer, order) = slice.device_ptr(self.loaded.ours.stream());
        let before = layout.start_offset() * size_of::<T>();
        Ok(Held { place: Place::at(pointer + before as u64, slice.num_bytes() - before), _order: order })
    }

    /// The same of a contiguous tensor.
    fn dense<'a, T: CudaDType + DeviceRepr + 'a>(&'a self, given: Given<'a>) -> Result<Held<'a>> {
        if !given.1.is_contiguous() {
            candle_core::bail!("a kernel was given a strided tensor {:?}; make it contiguous first", given.1);
        }
        self.from::<T>(given)
    }

    /// Memory that holds nothing of worth until a launch has written it.
    fn room<T: DeviceRepr>(&self, len: usize) -> Result<Made<T>> {
        // SAFETY: whoever asks launches what writes all of it.
        Ok(Made(unsafe { self.candle.alloc::<T>(len) }?))
    }

    /// Memory that holds zeros.
    fn zeros(&self, len: usize) -> Result<Made<f32>> {
        Ok(Made(self.candle.alloc_zeros::<f32>(len)?))
    }

    /// The tensor on this device.
    fn upload<T: candle_core::WithDType>(&self, values: &[T]) -> Result<Tensor> {
        Tensor::from_slice(values, values.len(), &candle_core::Device::Cuda(self.candle.clone()))
    }

    /// Puts a launch behind those before it.
    fn launch(&self, call: &Call<&Held<'_>>) -> Result<()> {
        // SAFETY: memory that tensors leave is given back on the same stream, so after the launch; indices are those of
        // targets and spans that were checked.
        Ok(unsafe { self.loaded.ours.launch(&call.map(|held| held.place)) }?)
    }

    fn shared(&self) -> usize {
        self.loaded.ours.shared()
    }
}

/// Memory while it is used by launches: other streams, those of other devices, wait for them.
struct Held<'a> {
    place: Place,
    _order: SyncOnDrop<'a>,
}

impl Held<'_> {
    /// For libraries.
    fn pointer(&self) -> *const c_void {
        self.place.pointer() as *const c_void
    }
}

impl Bytes for &Held<'_> {
    fn bytes(&self) -> usize {
        self.place.bytes()
    }
}

/// New memory.
struct Made<T>(CudaSlice<T>);

impl<T: CudaDType + DeviceRepr> Made<T> {
    fn held<'a>(&'a mut self, gpu: &'a Gpu) -> Held<'a> {
        let bytes = self.0.num_bytes();
        let (pointer, order) = self.0.device_ptr_mut(gpu.loaded.ours.stream());
        Held { place: Place::at(pointer, bytes), _order: order }
    }

    fn storage(self, gpu: &Gpu) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(self.0, gpu.candle.clone())
    }

    fn tensor(self, gpu: &Gpu, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(Storage::Cuda(self.storage(gpu)), shape, BackpropOp::none(), false)
    }
}

/// Binds the memory of tensors on the device: `held!(gpu.from::<u32>; rows, targets);` holds that of the tensors of these
/// names.
macro_rules! held {
    ($gpu:ident.$how:ident::<$T:ty>; $($name:ident),+) => {
        $(
            let (guard, layout) = $name.storage_and_layout();
            let candle_core::Storage::Cuda(storage) = &*guard else {
                candle_core::bail!("a tensor is not on the device of the others")
            };
            let $name = &$gpu.$how::<$T>((storage, layout))?;
        )+
    };
}
use held;
