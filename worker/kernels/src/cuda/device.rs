//! Launches on a GPU, by the driver's own interface. Neither driver nor toolkit is needed to build this, and where there is
//! no driver the program starts all the same and is told so.
//!
//! [`Gpu`] executes whole programs.
//!
//! Not yet run on a device.

/// Can the library of these bindings be loaded? Asked before anything else is, since the loader panics. Where the program is
/// linked with it, it would not have started otherwise.
macro_rules! is_there {
    ($sys:ident) => {{
        // SAFETY: asks whether the library can be loaded.
        #[cfg(not(feature = "candle-cuda"))]
        let there = unsafe { $sys::is_culib_present() };
        #[cfg(feature = "candle-cuda")]
        let there = true;
        there
    }};
}

mod gpu;
mod products;

pub use gpu::{Gpu, Launching, OnGpu};

use super::{Argument, Bytes, Call, Extent, SOURCES};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result,
    sys::{self, CUdeviceptr, CUfunction, CUmodule},
};
use std::{
    collections::BTreeMap,
    ffi::{CString, c_void},
    fmt,
    sync::Arc,
};

/// A GPU with the kernels on it, and the one stream on which everything happens in order.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<CUmodule>,
    functions: BTreeMap<&'static str, CUfunction>,
    shared: usize,
}

/// Why something is not done on a GPU.
#[derive(Debug)]
pub enum DeviceError {
    /// There is no libcuda: no driver is installed.
    NoDriver,
    /// There is no libcublasLt.
    NoProducts,
    /// cuBLASLt has no way to multiply such matrices.
    Product {
        of: Extent,
        reason: String,
    },
    /// cuBLASLt fails.
    Products(String),
    /// Nothing was captured.
    NoGraph,
    /// A buffer and the host's memory beside it differ in length.
    Length {
        buffer: usize,
        host: usize,
    },
    Driver(DriverError),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => write!(f, "there is no CUDA driver (libcuda.so.1): install NVIDIA's driver"),
            Self::NoProducts => {
                write!(f, "there is no cuBLASLt (libcublasLt.so): install it (pip install nvidia-cublas)")
            }
            Self::Product { of, reason } => write!(f, "cuBLASLt cannot multiply {of:?}: {reason}"),
            Self::Products(error) => write!(f, "cuBLASLt: {error}"),
            Self::NoGraph => write!(f, "CUDA captured no graph"),
            Self::Length { buffer, host } => write!(f, "a buffer of {buffer} bytes and {host} on the host"),
            Self::Driver(error) => write!(f, "CUDA: {error}"),
        }
    }
}

impl std::error::Error for DeviceError {}

impl From<DriverError> for DeviceError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// Memory on the GPU, freed when dropped.
pub struct Buffer {
    slice: CudaSlice<u8>,
    place: Place,
}

impl Buffer {
    /// Where it is.
    pub fn place(&self) -> Place {
        self.place
    }
}

/// Where a kernel finds something; valid as long as the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pointer: CUdeviceptr,
    bytes: usize,
}

impl Place {
    /// What lies behind the first so many f32.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn behind(self, floats: usize) -> Self {
        let skipped = floats * size_of::<f32>();
        assert!(skipped <= self.bytes, "{skipped} of {} bytes", self.bytes);
        Self { pointer: self.pointer + skipped as CUdeviceptr, bytes: self.bytes - skipped }
    }
}

impl Place {
    /// What lies at a place of the device's memory.
    #[cfg(feature = "candle-cuda")]
    pub(super) fn at(pointer: CUdeviceptr, bytes: usize) -> Self {
        Self { pointer, bytes }
    }

    #[cfg(feature = "candle-cuda")]
    pub(super) fn pointer(self) -> CUdeviceptr {
        self.pointer
    }
}

impl Bytes for Place {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Device {
    /// GPU number `ordinal`, with all kernels, whose PTX its driver translates for it.
    ///
    /// # Errors
    /// No driver, no such GPU.
    pub fn new(ordinal: usize) -> Result<Self, DeviceError> {
        if !is_there!(sys) {
            return Err(DeviceError::NoDriver);
        }
        let context = CudaContext::new(ordinal)?;
        // SAFETY: there is one stream, on which everything happens in order. (Waiting for events would break captures.)
        unsafe { context.disable_event_tracking() };
        Self::on(context.new_stream()?)
    }

    /// The same GPU that a stream is of, which everything is then launched on.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn on(stream: Arc<CudaStream>) -> Result<Self, DeviceError> {
        let context = stream.context().clone();
        let optin = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared = context.attribute(optin)? as usize;
        let mut device = Self { context, stream, modules: Vec::new(), functions: BTreeMap::new(), shared };
        device.load()?;
        Ok(device)
    }

    /// Bytes of shared memory that a block may have.
    pub fn shared(&self) -> usize {
        self.shared
    }

    /// Bytes of memory that nobody has.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.context.mem_get_info()?.0 as u64)
    }

    fn load(&mut self) -> Result<(), DeviceError> {
        self.context.bind_to_thread()?;
        for source in SOURCES {
            let text = CString::new(source.ptx()).expect("PTX has no zeros");
            // SAFETY: the text ends with a zero and outlives the call; the context is current.
            let module = unsafe { result::module::load_data(text.as_ptr().cast()) }?;
            self.modules.push(module);
            for kernel in source.kernels() {
                let function = self.function(module, kernel)?;
                self.functions.insert(kernel, function);
            }
        }
        Ok(())
    }

    /// A kernel that may have as much shared memory as there is.
    fn function(&self, module: CUmodule, kernel: &str) -> Result<CUfunction, DeviceError> {
        let name = CString::new(kernel).expect("names have no zeros");
        // SAFETY: the module is loaded in the current context, and lives as long as this device.
        let function = unsafe { result::module::get_function(module, name) }?;
        let [fixed, limit] = [
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        ];
        // SAFETY: the function is of the current context.
        unsafe {
            let fixed = result::function::get_function_attribute(function, fixed)?;
            result::function::set_function_attribute(function, limit, self.shared as i32 - fixed)?;
        }
        Ok(function)
    }

    /// What everything is launched on.
    #[cfg(feature = "candle-cuda")]
    pub(super) fn stream(&self) -> &CudaStream {
        &self.stream
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// No memory is left.
    pub fn zeros(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        let slice = self.stream.alloc_zeros::<u8>(bytes)?;
        let pointer = slice.device_ptr(&self.stream).0;
        Ok(Buffer { slice, place: Place { pointer, bytes } })
    }

    /// Replaces a buffer's content.
    ///
    /// # Errors
    /// Another length; the driver's errors.
    pub fn write(&self, buffer: &mut Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        if buffer.place.bytes != bytes.len() {
            return Err(DeviceError::Length { buffer: buffer.place.bytes, host: bytes.len() });
        }
        Ok(self.stream.memcpy_htod(bytes, &mut buffer.slice)?)
    }

    /// A buffer's content, once all that was launched before is done.
    ///
    /// # Errors
    /// The driver's, among them those of earlier launches.
    pub fn read(&self, buffer: &Buffer) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; buffer.place.bytes];
        self.stream.memcpy_dtoh(&buffer.slice, &mut bytes)?;
        self.stream.synchronize()?;
        Ok(bytes)
    }

    /// Puts a launch behind those before it; does not wait.
    ///
    /// # Safety
    /// The buffers live until the launch is done, and what of their content is an index is within what it points into
    /// (the lengths themselves were checked when the call was made).
    ///
    /// # Errors
    /// The driver's.
    pub unsafe fn launch(&self, call: &Call<Place>) -> Result<(), DeviceError> {
        let function = self.functions.get(call.kernel()).copied().expect("calls are of our kernels");
        let pointer = |argument: &Argument<Place>| match argument {
            Argument::Buffer(place) => place.pointer,
            Argument::Null | Argument::Value(_) => 0,
        };
        let pointers: Vec<CUdeviceptr> = call.arguments().iter().map(pointer).collect();
        let mut arguments: Vec<*mut c_void> = call
            .arguments()
            .iter()
            .zip(&pointers)
            .map(|(argument, pointer)| match argument {
                Argument::Value(bytes) => bytes.as_ptr().cast_mut().cast(),
                Argument::Buffer(_) | Argument::Null => std::ptr::from_ref(pointer).cast_mut().cast(),
            })
            .collect();
        let [x, y, z] = call.grid();
        self.context.bind_to_thread()?;
        // SAFETY: the arguments are those of the kernel, as the emulated tests check for every call that can be made; the
        // driver copies them before it returns. The rest the caller promises.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (call.threads(), 1, 1),
                call.shared_bytes(),
                self.stream.cu_stream(),
                &mut arguments,
            )
        }?;
        Ok(())
    }
}

// SAFETY: handles of the driver belong to a context and may be used by any thread that makes it current, as everything
// here does first.
#[cfg(feature = "candle-cuda")]
unsafe impl Send for Device {}
// SAFETY: the same; nothing here changes but when it is made and dropped.
#[cfg(feature = "candle-cuda")]
unsafe impl Sync for Device {}

impl Drop for Device {
    fn drop(&mut self) {
        // What is still running uses the kernels. Errors are those of launches, which nobody is left to hear.
        let _ = self.stream.synchronize();
        let _ = self.context.bind_to_thread();
        for module in self.modules.drain(..) {
            // SAFETY: loaded by `load`, in this context; nobody else has it.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}
