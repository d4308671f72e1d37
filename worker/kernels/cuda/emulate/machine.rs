//! A machine that emulates: it executes programs on the CPU.

use super::{Memory, ORDERS, Operation, Place, execute, program};
use std::convert::Infallible;
use taskvec_kernels::cuda::{
    Bytes,
    program::{self as device, Buffer, Loaded, Machine, Program, Region},
};

/// As much as sm_90 has.
const SHARED: usize = 232_448;

/// Threads and blocks take turns in the order of this number: ascending, descending, or shuffled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Emulated {
    pub order: u32,
}

impl Emulated {
    /// One of each order.
    pub fn all() -> [Self; ORDERS.len()] {
        ORDERS.map(|order| Self { order })
    }
}

pub struct InMemory {
    machine: Emulated,
    program: Program,
    memory: Memory,
}

fn place(region: &Region) -> Place {
    Place { buffer: region.buffer(), from: region.from(), bytes: region.bytes() }
}

impl Machine for Emulated {
    type Error = Infallible;
    type Loaded = InMemory;

    fn shared(&self) -> usize {
        SHARED
    }

    fn load(&self, program: Program) -> Result<InMemory, Infallible> {
        let mut memory = Memory::default();
        for buffer in program.buffers() {
            match buffer {
                Buffer::Values(bytes) => memory.unwritten(*bytes),
                Buffer::Table(content) => memory.bytes(content.clone()),
            };
        }
        Ok(InMemory { machine: *self, program, memory })
    }
}

impl Loaded for InMemory {
    type Error = Infallible;

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<(), Infallible> {
        assert!(self.program.is_writable(region) && bytes.len() == region.bytes(), "{region:?}");
        let Place { buffer, from, bytes: len } = place(&region);
        self.memory.buffers[buffer][from..from + len].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, region: Region) -> Result<Vec<u8>, Infallible> {
        assert!(self.program.is_readable(region), "{region:?}");
        Ok(self.memory.read(place(&region)).to_vec())
    }

    fn run(&mut self, times: usize) -> Result<(), Infallible> {
        let placed = |operation: &device::Operation| match operation {
            device::Operation::Launch(call) => Operation::Launch(call.map(place)),
            device::Operation::Multiply(product) => Operation::Multiply(product.map(place)),
            device::Operation::Clear(region) => Operation::Clear(place(region)),
        };
        let operations: Vec<Operation> = self.program.operations().iter().map(placed).collect();
        let program = program().expect("asked for by the caller");
        let after = execute(program, &operations, times, &self.memory.buffers, self.machine.order);
        self.memory.set(&after);
        Ok(())
    }
}
