//! Executes launches on the CPU: the kernels are compiled by g++ with `cuda_emulation.h` into a program that executes
//! one launch. A module of the tests that need it.

#[cfg(feature = "cuda")]
mod on_device;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};
use taskvec_kernels::cuda::{Argument, Bytes, Call, SOURCES};

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
        let after = ORDERS.map(|order| execute(program, call, &self.buffers, order));
        for (other, order) in after.iter().zip(ORDERS).skip(1) {
            assert!(other == &after[0], "{}: other bytes with threads in order {order}", call.kernel);
        }
        let [mut after, ..] = after;
        #[cfg(feature = "cuda")]
        on_device::assert_same(call, &self.buffers, &after);
        for buffer in &mut self.buffers {
            let rest = after.split_off(buffer.len());
            *buffer = std::mem::replace(&mut after, rest);
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
        eprintln!("\nSKIPPED: kernels are not executed, since there is no g++ (apt-get install g++)\n");
        return None;
    }
    let emulate = folder().join("emulate");
    let text = |name: &str| std::fs::read_to_string(emulate.join(name)).expect("a source of the emulation");
    let mut hasher = DefaultHasher::new();
    SOURCES.map(|source| source.text()).hash(&mut hasher);
    [text("cuda_emulation.h"), text("main.cpp")].hash(&mut hasher);
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

/// All buffers as they are afterwards, one after the other.
fn execute(program: &Path, call: &Call<Place>, buffers: &[Vec<u8>], order: u32) -> Vec<u8> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let sent = child.stdin.take().expect("a pipe").write_all(&request(call, buffers, order));
    let out = child.wait_with_output().expect("the program ends");
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{} ({}): {errors}", call.kernel, out.status);
    sent.expect("the launch is read");
    out.stdout
}

fn request(call: &Call<Place>, buffers: &[Vec<u8>], order: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, n: usize| out.extend(u32::try_from(n).expect("32 bits").to_le_bytes());
    let text = |out: &mut Vec<u8>, bytes: &[u8]| {
        number(out, bytes.len());
        out.extend(bytes);
    };
    text(&mut out, call.kernel.as_bytes());
    for n in call.grid.into_iter().chain([call.threads, call.shared, order]) {
        out.extend(n.to_le_bytes());
    }
    number(&mut out, buffers.len());
    buffers.iter().for_each(|buffer| text(&mut out, buffer));
    number(&mut out, call.arguments.len());
    for argument in &call.arguments {
        match argument {
            Argument::Buffer(place) => [0, place.buffer, place.from].into_iter().for_each(|n| number(&mut out, n)),
            Argument::Null => number(&mut out, 1),
            Argument::Value(bytes) => {
                number(&mut out, 2);
                text(&mut out, bytes);
            }
        }
    }
    out
}
