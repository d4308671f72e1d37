//! A launch as plain data.

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

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Call<B> {
    pub kernel: &'static str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Of a block; whole warps.
    pub threads: u32,
    /// Bytes of shared memory of a block, beside those that the kernel always has.
    pub shared: u32,
    pub arguments: Vec<Argument<B>>,
}

/// Threads of a block where nothing else asks for more or fewer.
const THREADS: u32 = 256;
/// Of a warp.
pub(super) const WARP: usize = 32;

impl<B> Call<B> {
    /// The same launch with memory held by something else.
    pub fn map<C>(&self, place: impl Fn(&B) -> C) -> Call<C> {
        let argument = |argument: &Argument<B>| match argument {
            Argument::Buffer(buffer) => Argument::Buffer(place(buffer)),
            Argument::Null => Argument::Null,
            Argument::Value(bytes) => Argument::Value(bytes.clone()),
        };
        let arguments = self.arguments.iter().map(argument).collect();
        Call { kernel: self.kernel, grid: self.grid, threads: self.threads, shared: self.shared, arguments }
    }
}

impl<B: Bytes> Call<B> {
    /// A launch of that many blocks.
    pub(super) fn new(kernel: &'static str, grid: [usize; 3]) -> Self {
        assert!(grid.iter().all(|&n| n > 0) && grid[1] < 1 << 16 && grid[2] < 1 << 16, "{kernel}: no grid {grid:?}");
        let grid = grid.map(|n| u32::try_from(n).expect("blocks fit 32 bits"));
        Self { kernel, grid, threads: THREADS, shared: 0, arguments: Vec::new() }
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

    /// A buffer of at least `len` elements of type `T`.
    pub(super) fn buffer<T>(mut self, buffer: B, len: usize) -> Self {
        let (has, needs) = (buffer.bytes(), len * size_of::<T>());
        let at = self.arguments.len();
        assert!(has >= needs, "{}: argument {at} has {has} bytes and needs {needs}", self.kernel);
        self.arguments.push(Argument::Buffer(buffer));
        self
    }

    /// A buffer of at least `len` f32.
    pub(super) fn floats(self, buffer: B, len: usize) -> Self {
        self.buffer::<f32>(buffer, len)
    }

    /// The same, or none.
    pub(super) fn maybe_floats(mut self, buffer: Option<B>, len: usize) -> Self {
        match buffer {
            Some(buffer) => self.floats(buffer, len),
            None => {
                self.arguments.push(Argument::Null);
                self
            }
        }
    }

    pub(super) fn bytes(mut self, value: &[u8]) -> Self {
        self.arguments.push(Argument::Value(value.to_vec()));
        self
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
