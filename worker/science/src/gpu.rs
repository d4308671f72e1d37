//! Jobs on a GPU: training of synthetic models, their task decodability and their patching in its memory; passes of language
//! models, in a build with the feature `candle-cuda`, on all GPUs that [`Models`] were given; everything else on the CPU.

use crate::{Member, Models};

/// Why a GPU cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoGpu(String);

/// Asks for GPU number `ordinal`; gives the bytes of its memory that are free.
///
/// # Errors
/// No driver, no cuBLASLt, no such GPU; a build without the feature `cuda`.
pub fn free_bytes(ordinal: usize) -> Result<u64, NoGpu> {
    inner::free_bytes(ordinal).map_err(NoGpu)
}

/// As [`crate::execute_stack`], with training, task decodability and patching of synthetic models on GPU number `ordinal`.
/// Where that cannot be used, training fails and says why, and all else is done on the CPU.
pub fn execute_stack(members: Vec<Member>, models: &Models, ordinal: usize) {
    inner::execute_stack(members, models, ordinal);
}

#[cfg(feature = "cuda")]
mod inner {
    use super::{Member, Models};
    use crate::stack;
    use std::cell::RefCell;
    use taskvec_kernels::cuda::device::{DeviceError, Gpu, Launching};
    use taskvec_model::job::JobWork;

    /// Steps in a captured graph: enough that a launch costs nothing beside them.
    const STEPS: usize = 10;

    thread_local! {
        /// A GPU belongs to a thread, and what is loaded there is used again by its next job.
        static GPU: RefCell<Option<(usize, Gpu)>> = const { RefCell::new(None) };
    }

    fn with<R>(ordinal: usize, then: impl FnOnce(&Gpu) -> R) -> Result<R, DeviceError> {
        GPU.with_borrow_mut(|held| {
            let gpu = match held.take() {
                Some((number, gpu)) if number == ordinal => gpu,
                _ => Gpu::new(ordinal, Launching::Graph(STEPS))?,
            };
            let (_, gpu) = held.insert((ordinal, gpu));
            Ok(then(gpu))
        })
    }

    pub fn free_bytes(ordinal: usize) -> Result<u64, String> {
        let asked = Gpu::new(ordinal, Launching::Each).and_then(|gpu| gpu.free_bytes());
        asked.map_err(|error| error.to_string())
    }

    pub fn execute_stack(members: Vec<Member>, models: &Models, ordinal: usize) {
        let mut members = Some(members);
        let used = with(ordinal, |gpu| {
            let (training, others): (Vec<_>, Vec<_>) =
                members.take().unwrap_or_default().into_iter().partition(|m| matches!(m.work, JobWork::Train { .. }));
            stack::execute_stack_on(training, models, gpu);
            // What is done once needs no graph.
            stack::execute_stack_on(others, models, &gpu.launching(Launching::Each));
        });
        if let (Err(error), Some(members)) = (used, members) {
            stack::without_machine(members, models, &error.to_string());
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod inner {
    use super::{Member, Models};
    use crate::stack;

    const WHY: &str = "this build runs without CUDA; build it with the feature `cuda`, or use `--device cpu`";

    pub fn free_bytes(_: usize) -> Result<u64, String> {
        Err(WHY.to_owned())
    }

    pub fn execute_stack(members: Vec<Member>, models: &Models, _: usize) {
        stack::without_machine(members, models, WHY);
    }
}
