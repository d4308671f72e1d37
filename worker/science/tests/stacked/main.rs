//! Training of several runs side by side, and what their checkpoints say: on an emulated device and, with the feature `cuda`,
//! on a GPU where there is one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../examples/common/mod.rs"]
mod configurations;
#[path = "../../../kernels/cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

mod agreement;
mod cost;
mod jobs;
mod lives;
mod overlap;
mod patching;
mod runs;
mod td;

/// A check of any machine, as a test on an emulated one and as one on a GPU. Where there is none, that is said.
macro_rules! on_machines {
    ($($check:ident),* $(,)?) => {
        mod emulated {
            $(#[test]
            fn $check() {
                if crate::emulator::available() {
                    super::$check(&crate::emulator::machine::Emulated::default());
                }
            })*
        }

        #[cfg(feature = "cuda")]
        mod on_a_gpu {
            $(#[test]
            fn $check() {
                // Two steps at once, and what is left over.
                match taskvec_kernels::cuda::device::Gpu::new(0, taskvec_kernels::cuda::device::Launching::Graph(2)) {
                    Ok(gpu) => super::$check(&gpu),
                    Err(error) => std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("\nSKIPPED: runs are not trained on a GPU: {error}\n")).unwrap(),
                }
            })*
        }
    };
}
use on_machines;
