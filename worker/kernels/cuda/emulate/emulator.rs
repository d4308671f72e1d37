//! Executes launches and whole programs on the CPU: the kernels are compiled by g++ with `cuda_emulation.h` into a program
//! that executes what it is told. A module of the tests that need it.

pub mod machine;
#[cfg(feature = "cuda")]
mod on_device;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};
use taskvec_kernels::cuda::{Argument, Bytes, Call, Extent, Operand, Product, SOURCES};

/// Orders in which threads and blocks take turns: ascending, descending, shuffled.
const ORDERS: [u32; 3] = [0, 1, 2];

/// A place in the memory of a device.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    buffer: usize,
    from: usize,
    bytes: usize,
}

impl Place {
    /// What lies behind the first so many f32.
    pub fn behind(self, floats: usize) -> Self {
        Self { from: self.from + 4 * floats, bytes: self.bytes - 4 * floats, ..self }
    }
}

impl Bytes for Place {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Buffers, each of which ends where memory begins that may not be touched.
#[derive(Clone, Default)]
pub struct Memory {
    buffers: Vec<Vec<u8>>,
}

impl Memory {
    /// A buffer with these bytes.
    pub fn bytes(&mut self, bytes: Vec<u8>) -> Place {
        let place = Place { buffer: self.buffers.len(), from: 0, bytes: bytes.len() };
        self.buffers.push(bytes);
        place
    }

    pub fn floats(&mut self, values: &[f32]) -> Place {
        self.bytes(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn doubles(&mut self, values: &[f64]) -> Place {
        self.bytes(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn words(&mut self, values: &[u32]) -> Place {
        self.bytes(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn longs(&mut self, values: &[u64]) -> Place {
        self.bytes(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A buffer that nothing has been written to: whatever it is read as is NaN.
    pub fn unwritten(&mut self, bytes: usize) -> Place {
        self.bytes(vec![0xff; bytes])
    }

    /// The same for so many f32.
    pub fn room(&mut self, floats: usize) -> Place {
        self.unwritten(4 * floats)
    }

    pub fn read(&self, place: Place) -> &[u8] {
        &self.buffers[place.buffer][place.from..place.from + place.bytes]
    }

    pub fn read_floats(&self, place: Place) -> Vec<f32> {
        self.read(place).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub fn read_doubles(&self, place: Place) -> Vec<f64> {
        self.read(place).as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
    }

    pub fn read_words(&self, place: Place) -> Vec<u32> {
        self.read(place).as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    /// Executes a launch, with threads in several orders, which must give the same bytes, and so must a GPU where there
    /// is one and the feature `cuda` is on.
    pub fn run(&mut self, call: &Call<Place>) {
        let program = program().expect("asked for by the caller");
        let after = ORDERS.map(|order| execute(program, &[Operation::Launch(call.clone())], 1, &self.buffers, order));
        for (other, order) in after.iter().zip(ORDERS).skip(1) {
            assert!(other == &after[0], "{}: other bytes with threads in order {order}", call.kernel());
        }
        let [after, ..] = after;
        #[cfg(feature = "cuda")]
        on_device::assert_same(call, &self.buffers, &after);
        self.set(&after);
    }

    /// All that buffers hold, one after the other.
    fn set(&mut self, mut after: &[u8]) {
        for buffer in &mut self.buffers {
            let (content, rest) = after.split_at(buffer.len());
            buffer.copy_from_slice(content);
            after = rest;
        }
    }
}

/// Can kernels be executed here? Says loudly where not.
pub fn available() -> bool {
    program().is_some()
}

fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(built).as_deref()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/cuda")
}

/// The program for the sources as they are, made unless it is there.
fn built() -> Option<PathBuf> {
    if Command::new("g++").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        // Not by eprintln!, which is hidden where the test passes.
        let said = format_args!("\nSKIPPED: kernels are not executed, since there is no g++ (apt-get install g++)\n");
        std::io::Write::write_fmt(&mut std::io::stderr(), said).expect("somewhere to say it");
        return None;
    }
    let emulate = folder().join("emulate");
    let text = |name: &str| std::fs::read_to_string(emulate.join(name)).expect("a source of the emulation");
    let mut hasher = DefaultHasher::new();
    SOURCES.map(|source| source.text()).hash(&mut hasher);
    ["cuda_emulation.h", "main.cpp", "product.h"].map(text).hash(&mut hasher);
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{:016x}", hasher.finish()));
    if !made.exists() {
        build(&emulate, &made);
    }
    Some(made)
}

fn build(emulate: &Path, made: &Path) {
    let work = made.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&work).expect("a folder to build in");
    let names: Vec<&str> = SOURCES.iter().flat_map(|source| source.kernels()).collect();
    let includes = SOURCES.iter().map(|source| format!("#include \"{}.cu\"\n", source.name));
    let table = names.iter().map(|name| format!(" KERNEL({name})"));
    let list = includes.chain(["#define KERNELS".to_owned()]).chain(table).chain(["\n".to_owned()]);
    std::fs::write(work.join("kernels.h"), list.collect::<String>()).expect("the list of kernels is written");
    let out = Command::new("g++")
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror"])
        .arg("-I")
        .arg(&work)
        .arg("-I")
        .arg(folder())
        .arg(emulate.join("main.cpp"))
        .arg("-o")
        .arg(work.join("program"))
        .output()
        .expect("g++ runs");
    assert!(out.status.success(), "g++ refuses the kernels:\n{}", String::from_utf8_lossy(&out.stderr));
    // Whole or not at all, whoever builds it beside us.
    std::fs::rename(work.join("program"), made).expect("the program is put in place");
    std::fs::remove_dir_all(&work).expect("the folder is removed");
}

/// What an operation does to buffers.
enum Operation {
    Launch(Call<Place>),
    Multiply(Product<Place>),
    Clear(Place),
}

/// All buffers as they are after so many times all operations, one after the other.
fn execute(program: &Path, operations: &[Operation], times: usize, buffers: &[Vec<u8>], order: u32) -> Vec<u8> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let sent = child.stdin.take().expect("a pipe").write_all(&request(operations, times, buffers, order));
    let out = child.wait_with_output().expect("the program ends");
    let errors = String::from_utf8_lossy(&out.stderr);
    let names = operations.iter().filter_map(|operation| match operation {
        Operation::Launch(call) => Some(call.kernel()),
        Operation::Multiply(_) | Operation::Clear(_) => None,
    });
    assert!(out.status.success(), "{:?} ({}): {errors}", names.collect::<Vec<_>>(), out.status);
    sent.expect("the operations are read");
    out.stdout
}

fn request(operations: &[Operation], times: usize, buffers: &[Vec<u8>], order: u32) -> Vec<u8> {
    let mut out = Request(Vec::new());
    out.numbers([order as usize, buffers.len()]);
    buffers.iter().for_each(|buffer| out.text(buffer));
    out.numbers([times, operations.len()]);
    for operation in operations {
        match operation {
            Operation::Launch(call) => out.launch(call),
            Operation::Multiply(product) => out.product(product),
            Operation::Clear(place) => out.numbers([2, place.buffer, place.from, place.bytes]),
        }
    }
    out.0
}

/// The program's input.
struct Request(Vec<u8>);

impl Request {
    fn numbers(&mut self, numbers: impl IntoIterator<Item = usize>) {
        let bytes = numbers.into_iter().flat_map(|n| u32::try_from(n).expect("32 bits").to_le_bytes());
        self.0.extend(bytes);
    }

    fn text(&mut self, bytes: &[u8]) {
        self.numbers([bytes.len()]);
        self.0.extend(bytes);
    }

    fn launch(&mut self, call: &Call<Place>) {
        self.numbers([0]);
        self.text(call.kernel().as_bytes());
        let sizes = call.grid().into_iter().chain([call.threads(), call.shared_bytes()]);
        self.numbers(sizes.map(|n| n as usize).chain([call.arguments().len()]));
        for argument in call.arguments() {
            match argument {
                Argument::Buffer(place) => self.numbers([0, place.buffer, place.from]),
                Argument::Null => self.numbers([1]),
                Argument::Value(bytes) => {
                    self.numbers([2]);
                    self.text(bytes);
                }
            }
        }
    }

    fn product(&mut self, product: &Product<Place>) {
        let Extent { m, n, k, runs, precision } = product.extent();
        self.numbers([1, m, n, k, runs, precision as usize]);
        let [left, right] = product.factors();
        for Operand { place, stride, transposed } in [left, right, product.out()] {
            self.numbers([place.buffer, place.from, *stride, usize::from(*transposed)]);
        }
    }
}
