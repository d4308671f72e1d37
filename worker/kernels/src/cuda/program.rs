//! What a device does again and again, as plain data: buffers, and a list of operations on them.
//!
//! A [`Program`] is made by a [`Builder`], which checks all that could lead a kernel out of its buffers: their lengths, and
//! the tables that say where to read, whose content is part of the program. So whoever executes it (a [`Machine`]) need
//! check nothing, and whoever uses a machine can do no harm.

use super::{
    Bytes, Call, Product,
    layers::{Sum, sum_all},
    training::{Mixture, MixtureShape, mixture},
};

/// A part of a program's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    buffer: usize,
    from: usize,
    bytes: usize,
}

impl Region {
    /// Number of its buffer.
    pub fn buffer(&self) -> usize {
        self.buffer
    }

    /// Bytes of the buffer that lie before it.
    pub fn from(&self) -> usize {
        self.from
    }

    /// What lies behind the first so many f32.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn behind(self, floats: usize) -> Self {
        let skipped = floats * size_of::<f32>();
        assert!(skipped <= self.bytes, "{skipped} of {} bytes", self.bytes);
        Self { from: self.from + skipped, bytes: self.bytes - skipped, ..self }
    }

    /// Its first so many f32.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn first(self, floats: usize) -> Self {
        let bytes = floats * size_of::<f32>();
        assert!(bytes <= self.bytes, "{bytes} of {} bytes", self.bytes);
        Self { bytes, ..self }
    }

    fn end(&self) -> usize {
        self.from + self.bytes
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer && self.from < other.end() && other.from < self.end()
    }
}

impl Bytes for Region {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// One buffer of a program.
#[derive(Clone, Debug, PartialEq)]
pub enum Buffer {
    /// Of so many bytes, which hold nothing before they are written.
    Values(usize),
    /// Where kernels look up what they read: nobody writes to it.
    Table(Vec<u8>),
}

impl Buffer {
    pub fn bytes(&self) -> usize {
        match self {
            Self::Values(bytes) => *bytes,
            Self::Table(content) => content.len(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    Launch(Call<Region>),
    Multiply(Product<Region>),
    /// Fills it with zeros.
    Clear(Region),
}

/// Buffers, and operations in the order in which they are to happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    buffers: Vec<Buffer>,
    operations: Vec<Operation>,
}

/// What executing a program once takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub launches: usize,
    pub products: usize,
    pub clears: usize,
    /// Multiplications and additions of the products.
    pub operations: usize,
    /// Bytes of all operands of the products, each once.
    pub product_bytes: usize,
    /// The same of the kernels' arguments, from the first byte to the last: of several runs' parameters, this has in it what
    /// lies between them.
    pub kernel_bytes: usize,
    /// Bytes of all buffers.
    pub memory: usize,
}

/// Where buffers begin: what vectors and tensor cores like.
pub const ALIGNMENT: usize = 256;

impl Program {
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Where each buffer begins where all lie in one, and the bytes of that one.
    pub fn plan(&self) -> (Vec<usize>, usize) {
        let mut end = 0;
        let place = |buffer: &Buffer| {
            let start = end;
            end += buffer.bytes().next_multiple_of(ALIGNMENT);
            start
        };
        (self.buffers.iter().map(place).collect(), end)
    }

    /// Is this a part of a buffer that the host may write?
    pub fn is_writable(&self, region: Region) -> bool {
        self.is_readable(region) && matches!(self.buffers[region.buffer], Buffer::Values(_))
    }

    /// Is this a part of a buffer?
    pub fn is_readable(&self, region: Region) -> bool {
        self.buffers.get(region.buffer).is_some_and(|buffer| region.end() <= buffer.bytes())
    }

    pub fn cost(&self) -> Cost {
        let mut cost = Cost { memory: self.plan().1, ..Cost::default() };
        for operation in &self.operations {
            match operation {
                Operation::Launch(call) => {
                    cost.launches += 1;
                    cost.kernel_bytes += call.buffers().map(|(_, reach)| reach).sum::<usize>();
                }
                Operation::Multiply(product) => {
                    cost.products += 1;
                    cost.operations += product.operations();
                    cost.product_bytes += product.bytes();
                }
                Operation::Clear(region) => {
                    cost.clears += 1;
                    cost.kernel_bytes += region.bytes;
                }
            }
        }
        cost
    }
}

/// Where the sequences of a run come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub seed: u64,
    pub weight_mean: f64,
    /// The noise's standard deviation.
    pub noise: f64,
    /// The coordinates of each basis.
    pub bases: Vec<Vec<u32>>,
}

/// A program that is being made.
#[derive(Default)]
pub struct Builder {
    buffers: Vec<Buffer>,
    operations: Vec<Operation>,
}

impl Builder {
    /// A buffer of so many bytes.
    pub fn bytes(&mut self, bytes: usize) -> Region {
        self.keep(Buffer::Values(bytes))
    }

    /// A buffer of so many f32.
    pub fn floats(&mut self, len: usize) -> Region {
        self.bytes(len * size_of::<f32>())
    }

    fn table(&mut self, content: Vec<u8>) -> Region {
        self.keep(Buffer::Table(content))
    }

    fn keep(&mut self, buffer: Buffer) -> Region {
        let region = Region { buffer: self.buffers.len(), from: 0, bytes: buffer.bytes() };
        self.buffers.push(buffer);
        region
    }

    /// # Panics
    /// Where the launch reaches beyond this builder's buffers, or finds its way by what a buffer holds.
    pub fn launch(&mut self, call: Call<Region>) {
        assert!(!call.trusting(), "{} goes by tables that nobody checked", call.kernel());
        call.buffers().for_each(|(region, reach)| self.check(region, reach));
        self.operations.push(Operation::Launch(call));
    }

    /// # Panics
    /// Where the product reaches beyond this builder's buffers, or overwrites a factor.
    pub fn multiply(&mut self, product: Product<Region>) {
        let [left, right, out] = product.places();
        [left, right, out].iter().for_each(|(region, reach)| self.check(region, *reach));
        let part = |(region, reach): (&Region, usize)| Region { bytes: reach, ..*region };
        assert!(
            [left, right].iter().all(|&factor| !part(factor).overlaps(&part(out))),
            "a product overwrites a factor"
        );
        self.operations.push(Operation::Multiply(product));
    }

    /// # Panics
    /// Where it is not a part of this builder's buffers.
    pub fn clear(&mut self, region: Region) {
        self.check(&region, region.bytes);
        self.operations.push(Operation::Clear(region));
    }

    /// `sequences` of each run from its source: `tokens`, `y` and `basis` by the update `step`, as [`mixture()`] has them.
    ///
    /// # Panics
    /// Where a basis has another number of coordinates than the shape says, one of them is not below `dim`, a token has no
    /// channel for one or for y, a run has no basis or not the one that all shall have, or a place is too small.
    pub fn mixture(
        &mut self,
        sequences: usize,
        of: MixtureShape,
        sources: &[Source],
        [step, tokens, y, basis]: [Region; 4],
    ) {
        assert!(of.channels >= of.dim && of.y_channel < of.channels, "{of:?}: channels are missing");
        let (mut mixtures, mut coordinates) = (Vec::new(), Vec::<u32>::new());
        for source in sources {
            let bases = &source.bases;
            assert!(of.bases.suit(bases.len()), "{} bases, {of:?}", bases.len());
            assert!(bases.iter().all(|basis| basis.len() == of.rank as usize), "a basis is not of rank {}", of.rank);
            assert!(bases.iter().flatten().all(|&c| c < of.dim), "a coordinate is not below {}", of.dim);
            let &Source { seed, weight_mean, noise, .. } = source;
            let count = |n: usize| u32::try_from(n).expect("bases and their coordinates fit 32 bits");
            let (bases, table) = (count(bases.len()), count(coordinates.len()));
            mixtures.extend(Mixture { seed, weight_mean, noise, bases, table }.bytes());
            coordinates.extend(source.bases.iter().flatten());
        }
        let len = coordinates.len();
        let mixtures = self.table(mixtures);
        let coordinates = self.table(coordinates.iter().flat_map(|c| c.to_le_bytes()).collect());
        let call = mixture((sources.len(), sequences, len), of, [mixtures, step, coordinates, tokens, y, basis]);
        let tables = [mixtures, coordinates].map(|table| table.buffer);
        let others = call.buffers().filter(|(region, _)| !tables.contains(&region.buffer));
        others.for_each(|(region, reach)| self.check(region, reach));
        self.operations.push(Operation::Launch(call));
    }

    /// [`sum_all`] of these sums.
    ///
    /// # Panics
    /// Where a place is too small.
    pub fn sums(&mut self, (runs, stride): (usize, usize), sums: &[Sum], [partials, out]: [Region; 2]) {
        let table = self.table(Sum::table(sums).iter().flat_map(|word| word.to_le_bytes()).collect());
        let call = sum_all((runs, stride), sums, [partials, table, out]);
        let others = call.buffers().filter(|(region, _)| region.buffer != table.buffer);
        others.for_each(|(region, reach)| self.check(region, reach));
        self.operations.push(Operation::Launch(call));
    }

    /// A part of a buffer of values, and of so many bytes.
    fn check(&self, region: &Region, reach: usize) {
        let buffer = self.buffers.get(region.buffer);
        let fits = matches!(buffer, Some(Buffer::Values(bytes)) if region.end() <= *bytes) && reach <= region.bytes;
        assert!(fits, "{region:?} is no place for {reach} bytes in {buffer:?}");
    }

    pub fn finish(self) -> Program {
        Program { buffers: self.buffers, operations: self.operations }
    }
}

/// Something that executes programs.
pub trait Machine {
    type Error: std::error::Error + Send + Sync + 'static;
    type Loaded: Loaded<Error = Self::Error>;

    /// Bytes of shared memory that a block may have.
    fn shared(&self) -> usize;

    /// Makes memory for a program, and all that is needed to execute it.
    ///
    /// # Errors
    /// No memory is left, or whatever else fails.
    fn load(&self, program: Program) -> Result<Self::Loaded, Self::Error>;
}

/// A program in memory.
pub trait Loaded {
    type Error;

    /// Replaces what a region holds.
    ///
    /// # Errors
    /// It is no part of the program's values, or of another length, or whatever else fails.
    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<(), Self::Error>;

    /// What a region holds once all is done that was asked for before.
    ///
    /// # Errors
    /// It is no part of the program's memory, or whatever else fails, also of what was asked for before.
    fn read(&self, region: Region) -> Result<Vec<u8>, Self::Error>;

    /// Executes the program so many times. It may still be at it when this returns.
    ///
    /// # Errors
    /// Whatever fails.
    fn run(&mut self, times: usize) -> Result<(), Self::Error>;
}
