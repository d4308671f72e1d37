//! A launch as plain data.

use std::any::TypeId;

/// Something that holds a kernel's data, or a part of it.
pub trait Bytes {
    /// How many there are.
    fn bytes(&self) -> usize;
}

/// What a kernel is given.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument<B> {
    Buffer(B),
    Null,
    /// A value of the bytes that the kernel expects.
    Value(Vec<u8>),
}

/// One launch of a kernel, as only the functions of each kernel make it.
#[derive(Clone, Debug, PartialEq)]
pub struct Call<B> {
    pub(super) kernel: &'static str,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared: u32,
    arguments: Vec<Argument<B>>,
    /// Bytes that the kernel reaches of each argument.
    reach: Vec<usize>,
    /// Does the kernel find its way by what a buffer holds?
    trusting: bool,
}

/// Threads of a block where nothing else asks for more or fewer.
const THREADS: u32 = 256;
/// Of a warp.
pub(super) const WARP: usize = 32;

impl<B> Call<B> {
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Blocks in x, y and z.
    pub fn grid(&self) -> [u32; 3] {
        self.grid
    }

    /// Of a block; whole warps.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Bytes of shared memory of a block, beside those that the kernel always has.
    pub fn shared_bytes(&self) -> u32 {
        self.shared
    }

    pub fn arguments(&self) -> &[Argument<B>] {
        &self.arguments
    }

    /// The buffers among the arguments, each with the bytes that the kernel reaches of it.
    pub fn buffers(&self) -> impl Iterator<Item = (&B, usize)> {
        self.arguments.iter().zip(&self.reach).filter_map(|(argument, reach)| match argument {
            Argument::Buffer(buffer) => Some((buffer, *reach)),
            Argument::Null | Argument::Value(_) => None,
        })
    }

    /// Does the kernel find its way by what a buffer holds, which nobody checked when the call was made?
    pub fn trusting(&self) -> bool {
        self.trusting
    }

    /// The same launch with memory held by something else.
    pub fn map<C>(&self, place: impl Fn(&B) -> C) -> Call<C> {
        let argument = |argument: &Argument<B>| match argument {
            Argument::Buffer(buffer) => Argument::Buffer(place(buffer)),
            Argument::Null => Argument::Null,
            Argument::Value(bytes) => Argument::Value(bytes.clone()),
        };
        let arguments = self.arguments.iter().map(argument).collect();
        let Self { kernel, grid, threads, shared, trusting, .. } = *self;
        Call { kernel, grid, threads, shared, arguments, reach: self.reach.clone(), trusting }
    }
}

impl<B: Bytes> Call<B> {
    /// A launch of that many blocks.
    pub(super) fn new(kernel: &'static str, grid: [usize; 3]) -> Self {
        assert!(grid.iter().all(|&n| n > 0) && grid[1] < 1 << 16 && grid[2] < 1 << 16, "{kernel}: no grid {grid:?}");
        let grid = grid.map(|n| u32::try_from(n).expect("blocks fit 32 bits"));
        let (arguments, reach) = (Vec::new(), Vec::new());
        Self { kernel, grid, threads: THREADS, shared: 0, arguments, reach, trusting: false }
    }

    /// A thread for each of `count` elements, `runs` times.
    pub(super) fn each(kernel: &'static str, count: usize, runs: usize) -> Self {
        Self::new(kernel, [count.div_ceil(THREADS as usize), runs, 1])
    }

    /// A warp for each of `count` rows, `runs` times.
    pub(super) fn warp_each(kernel: &'static str, count: usize, runs: usize) -> Self {
        Self::new(kernel, [count.div_ceil(THREADS as usize / WARP), runs, 1])
    }

    /// Shared memory of so many bytes.
    pub(super) fn shared(mut self, bytes: usize) -> Self {
        self.shared = u32::try_from(bytes).expect("shared memory fits 32 bits");
        self
    }

    /// A buffer of at least `len` elements of type `T`. Those of u32 hold rows, columns or other places to go to.
    pub(super) fn buffer<T: 'static>(mut self, buffer: B, len: usize) -> Self {
        self.trusting |= TypeId::of::<T>() == TypeId::of::<u32>();
        self.place::<T>(buffer, len)
    }

    /// A buffer of at least `len` elements of type `T` that the kernel only writes, so that it goes by none of them.
    pub(super) fn result<T>(self, buffer: B, len: usize) -> Self {
        self.place::<T>(buffer, len)
    }

    fn place<T>(self, buffer: B, len: usize) -> Self {
        let (has, needs) = (buffer.bytes(), len.checked_mul(size_of::<T>()).expect("buffers fit the address space"));
        let at = self.arguments.len();
        assert!(has >= needs, "{}: argument {at} has {has} bytes and needs {needs}", self.kernel);
        self.push(Argument::Buffer(buffer), needs)
    }

    /// A buffer of so many bytes, whose content says, among other things, where the kernel reads or writes.
    pub(super) fn guide(mut self, buffer: B, len: usize) -> Self {
        self.trusting = true;
        self.buffer::<u8>(buffer, len)
    }

    fn push(mut self, argument: Argument<B>, reach: usize) -> Self {
        self.arguments.push(argument);
        self.reach.push(reach);
        self
    }

    /// A buffer of at least `len` f32.
    pub(super) fn floats(self, buffer: B, len: usize) -> Self {
        self.buffer::<f32>(buffer, len)
    }

    /// The same, or none.
    pub(super) fn maybe_floats(self, buffer: Option<B>, len: usize) -> Self {
        match buffer {
            Some(buffer) => self.floats(buffer, len),
            None => self.push(Argument::Null, 0),
        }
    }

    pub(super) fn bytes(self, value: &[u8]) -> Self {
        self.push(Argument::Value(value.to_vec()), 0)
    }

    /// A count or size of 32 bits.
    pub(super) fn int(self, value: usize) -> Self {
        let value = i32::try_from(value).expect("sizes fit 31 bits");
        self.bytes(&value.to_le_bytes())
    }

    /// A count or distance of 64 bits.
    pub(super) fn long(self, value: usize) -> Self {
        self.bytes(&(value as u64).to_le_bytes())
    }

    pub(super) fn float(self, value: f32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn double(self, value: f64) -> Self {
        self.bytes(&value.to_le_bytes())
    }
}
