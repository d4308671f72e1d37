//! A GPU that executes programs: all of a program's memory in one buffer, and its operations one after the other on one
//! stream, either launched each or captured in a graph that is launched at once.

use super::{
    Buffer, Device, DeviceError, Place,
    products::{Library, Planned},
};
use crate::cuda::{
    Bytes, Call,
    program::{self, Loaded, Machine, Operation, Program, Region},
};
use cudarc::driver::{
    CudaGraph,
    result::{memcpy_dtoh_async, memcpy_htod_async, memset_d8_async},
    sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
};
use std::rc::Rc;

/// How a program's operations reach the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launching {
    /// One by one.
    Each,
    /// So many executions of the program at once, as a graph; what is left over, and all where that is 0, one by one.
    Graph(usize),
}

/// Executes programs on one GPU. It belongs to one thread.
pub struct Gpu {
    device: Rc<Device>,
    library: Rc<Library>,
    launching: Launching,
}

impl Gpu {
    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// No driver, no cuBLASLt, no such GPU.
    pub fn new(ordinal: usize, launching: Launching) -> Result<Self, DeviceError> {
        let device = Device::new(ordinal)?;
        let library = Rc::new(Library::new(&device)?);
        Ok(Self { device: Rc::new(device), library, launching })
    }

    /// Bytes of its memory that nobody has.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_bytes(&self) -> Result<u64, DeviceError> {
        self.device.free_bytes()
    }

    /// The same GPU, launching in another way.
    pub fn launching(&self, launching: Launching) -> Self {
        Self { device: self.device.clone(), library: self.library.clone(), launching }
    }
}

/// A program on a GPU.
pub struct OnGpu {
    // Dropped before what it launches.
    graph: Option<(CudaGraph, usize)>,
    operations: Vec<Ready>,
    program: Program,
    /// Where in `memory` each buffer begins.
    starts: Vec<usize>,
    memory: Buffer,
    workspace: Buffer,
    device: Rc<Device>,
}

/// An operation with its places on the GPU.
enum Ready {
    Launch(Call<Place>),
    Multiply(Box<Planned>),
    Clear(Place),
}

impl Machine for Gpu {
    type Error = DeviceError;
    type Loaded = OnGpu;

    fn shared(&self) -> usize {
        self.device.shared()
    }

    fn load(&self, program: Program) -> Result<OnGpu, DeviceError> {
        let (starts, bytes) = program.plan();
        let memory = self.device.zeros(bytes)?;
        let place = |region: &Region| placed(&memory, &starts, *region);
        let ready = |operation: &Operation| {
            Ok(match operation {
                Operation::Launch(call) => Ready::Launch(call.map(place)),
                Operation::Multiply(product) => Ready::Multiply(Box::new(self.library.plan(&product.map(place))?)),
                Operation::Clear(region) => Ready::Clear(place(region)),
            })
        };
        let operations = program.operations().iter().map(ready).collect::<Result<Vec<_>, DeviceError>>()?;
        let needed = operations.iter().map(|operation| match operation {
            Ready::Multiply(product) => product.workspace(),
            Ready::Launch(_) | Ready::Clear(_) => 0,
        });
        let workspace = self.device.zeros(needed.max().unwrap_or(0).max(1))?;
        let device = self.device.clone();
        let mut loaded = OnGpu { graph: None, operations, program, starts, memory, workspace, device };
        loaded.write_tables()?;
        // Once before the host writes anything: whatever is loaded at first use is then there, and can be captured.
        loaded.once()?;
        loaded.device.stream.synchronize()?;
        if let Launching::Graph(times @ 1..) = self.launching {
            loaded.graph = Some((loaded.captured(times)?, times));
        }
        Ok(loaded)
    }
}

fn placed(memory: &Buffer, starts: &[usize], region: Region) -> Place {
    let from = starts[region.buffer()] + region.from();
    Place { pointer: memory.place.pointer + from as u64, bytes: region.bytes() }
}

impl OnGpu {
    fn write_tables(&mut self) -> Result<(), DeviceError> {
        for (buffer, start) in self.program.buffers().iter().zip(&self.starts) {
            if let program::Buffer::Table(content) = buffer {
                self.copy_in(self.memory.place.pointer + *start as u64, content)?;
            }
        }
        Ok(())
    }

    /// Copies to a part of `memory` that is as long.
    fn copy_in(&self, pointer: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let stream = &self.device.stream;
        self.device.context.bind_to_thread()?;
        // SAFETY: the callers have checked the part; what is copied lives until this returns, which waits.
        unsafe { memcpy_htod_async(pointer, bytes, stream.cu_stream()) }?;
        Ok(stream.synchronize()?)
    }

    /// All operations, one after the other.
    fn once(&self) -> Result<(), DeviceError> {
        self.device.context.bind_to_thread()?;
        for operation in &self.operations {
            // SAFETY: the program's builder has checked that no operation leaves its regions, and that tables, which
            // nobody overwrites, hold indices that are within; memory and workspace live as long as `self`, whose end waits
            // for all launches.
            unsafe {
                match operation {
                    Ready::Launch(call) => self.device.launch(call)?,
                    Ready::Multiply(product) => product.launch(&self.device, &self.workspace)?,
                    Ready::Clear(place) => {
                        memset_d8_async(place.pointer, 0, place.bytes, self.device.stream.cu_stream())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A graph of so many executions.
    fn captured(&self, times: usize) -> Result<CudaGraph, DeviceError> {
        let stream = &self.device.stream;
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let done = (0..times).try_for_each(|_| self.once());
        // Ended also where an operation failed.
        let graph = stream.end_capture(CUgraphInstantiate_flags(0));
        done?;
        let graph = graph?.ok_or(DeviceError::NoGraph)?;
        graph.upload()?;
        Ok(graph)
    }
}

impl Loaded for OnGpu {
    type Error = DeviceError;

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<(), DeviceError> {
        if !self.program.is_writable(region) || bytes.len() != region.bytes() {
            return Err(DeviceError::Length { buffer: region.bytes(), host: bytes.len() });
        }
        self.copy_in(placed(&self.memory, &self.starts, region).pointer, bytes)
    }

    fn read(&self, region: Region) -> Result<Vec<u8>, DeviceError> {
        if !self.program.is_readable(region) {
            return Err(DeviceError::Length { buffer: 0, host: region.bytes() });
        }
        let (stream, mut bytes) = (&self.device.stream, vec![0; region.bytes()]);
        self.device.context.bind_to_thread()?;
        // SAFETY: the region is within `memory`; the host's memory is as long, and lives until the copy is done.
        unsafe {
            let from = placed(&self.memory, &self.starts, region).pointer;
            memcpy_dtoh_async(&mut bytes, from, stream.cu_stream())
        }?;
        stream.synchronize()?;
        Ok(bytes)
    }

    fn run(&mut self, times: usize) -> Result<(), DeviceError> {
        let mut left = times;
        if let Some((graph, at_once)) = &self.graph {
            for _ in 0..times / at_once {
                graph.launch()?;
            }
            left = times % at_once;
        }
        (0..left).try_for_each(|_| self.once())
    }
}

impl Drop for OnGpu {
    fn drop(&mut self) {
        // What is still running uses the memory. Errors are those of launches, which nobody is left to hear.
        let _ = self.device.stream.synchronize();
    }
}
