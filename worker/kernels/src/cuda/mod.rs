//! The operations as CUDA kernels, for S runs stacked in one launch.
//!
//! The sources (`worker/kernels/cuda/*.cu`) and their PTX (`worker/kernels/ptx`, written by `make ptx`) are part of the
//! program: the GPU's driver translates the PTX when it is needed.
//!
//! A [`Call`] is one launch: which kernel, how many blocks, how much shared memory, which arguments. It is made by a
//! function for each kernel ([`layers`], [`attention`], [`attend`], [`training`], [`language`], [`analysis`],
//! [`rounding`]), whatever holds the memory, so that the tests execute on any machine, on a CPU, the very launches that a
//! GPU is given (`tests/cuda_emulated.rs`).
//!
//! A [`program`] is many of them and matrix products in a row, which a machine executes: a whole step of training.
//!
//! With the feature `cuda` there is `device`, which launches them on a GPU; the tests then also demand its bytes to be
//! those of the emulation (`cargo test --features cuda`). With the feature `candle-cuda` there is `tensors`, which launches them
//! on the tensors that candle has on a GPU, as part of the operations that language models are made of.
//!
//! Not yet run on a device: what was shown so far is that the sources compile for sm_80 and sm_90, that the PTX is theirs
//! (`tests/cuda_compiles.rs`), and what they compute when emulated.

pub mod analysis;
pub mod attend;
pub mod attention;
mod call;
#[cfg(feature = "cuda")]
pub mod device;
pub mod language;
pub mod layers;
mod product;
pub mod program;
pub mod rounding;
mod sources;
#[cfg(feature = "candle-cuda")]
pub mod tensors;
pub mod training;

/// Is a tensor on a GPU, but of a type that our kernels for tensors there do not take? Then the plain version computes with it.
#[cfg(feature = "candle-cuda")]
pub(crate) fn is_candles(x: &candle_core::Tensor) -> bool {
    x.device().is_cuda() && !tensors::takes(x)
}

#[cfg(not(feature = "candle-cuda"))]
pub(crate) fn is_candles(_: &candle_core::Tensor) -> bool {
    false
}

pub use call::{Argument, Bytes, Call};
pub use product::{Extent, Operand, Product};
pub use sources::{OPTIONS, SOURCES, Source};
