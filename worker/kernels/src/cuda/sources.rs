//! The text of the kernels, and what NVIDIA's compiler made of it.

/// One compilation unit: the kernels of one file.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The file's name without its ending.
    pub name: &'static str,
    text: &'static str,
    ptx: &'static str,
}

/// What NVRTC and nvcc are told beside the architecture. Without contraction a × b + c is rounded twice, as on the CPU;
/// where one rounding is wanted the sources say `fmaf`.
pub const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// Those that include others first.
const HEADERS: [(&str, &str); 4] = [
    ("#include \"attend.cuh\"", include_str!("../../cuda/attend.cuh")),
    ("#include \"common.cuh\"", include_str!("../../cuda/common.cuh")),
    ("#include \"logarithm.cuh\"", include_str!("../../cuda/logarithm.cuh")),
    ("#include \"philox.cuh\"", include_str!("../../cuda/philox.cuh")),
];

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        [$(Source {
            name: $name,
            text: include_str!(concat!("../../cuda/", $name, ".cu")),
            ptx: include_str!(concat!("../../ptx/", $name, ".ptx")),
        }),*]
    };
}

/// All of them.
pub const SOURCES: [Source; 16] = sources![
    "adam",
    "attend",
    "attend_backward",
    "attention",
    "bias",
    "cross_entropy",
    "gated",
    "knn",
    "layer_norm",
    "mixture",
    "mse",
    "positions",
    "rms_norm",
    "rotary",
    "rounding",
    "sums",
];

impl Source {
    /// Its PTX, which the driver of any GPU from sm_80 on translates for that GPU. `make ptx` writes it, and a test holds it
    /// against the text. The first line says what it is of.
    pub fn ptx(&self) -> &'static str {
        self.ptx
    }

    /// The text with our headers in it, as NVRTC takes it: it includes nothing.
    pub fn text(&self) -> String {
        HEADERS.iter().fold(self.text.to_owned(), |text, (line, header)| text.replace(line, header))
    }

    /// Names of its kernels, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        let after = |part: &'static str| part.split(['(', ' ']).next();
        self.text.split("extern \"C\" __global__ void ").skip(1).filter_map(after)
    }
}
