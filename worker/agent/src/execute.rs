//! What computes jobs.

use crate::config::Device;
use std::sync::{Mutex, PoisonError};
use taskvec_model::job::JobWork;
use taskvec_science::{Executed, Inputs, Member, Models, ScienceError, Sink, gpu};

/// What computes a job. In production [`Science`]; tests put something simpler in its place.
pub trait Execute: Send + Sync + 'static {
    /// Called on a thread of the slot's rayon pool. May panic.
    fn execute(&self, work: &JobWork, inputs: &Inputs, sink: &mut dyn Sink) -> Result<Executed, ScienceError>;

    /// Computes all jobs of a slot, and tells each sink how its job ended. Called in the same way.
    fn execute_stack(&self, members: Vec<Member>) {
        for Member { work, inputs, mut sink } in members {
            let how = self.execute(&work, &inputs, &mut *sink);
            sink.ended(how);
        }
    }
}

/// [`taskvec_science::execute`] and [`taskvec_science::execute_stack`], on GPUs where the worker has some.
pub struct Science {
    /// Shared by all slots.
    models: Models,
    /// Of each GPU, by number, how many slots use it.
    gpus: Mutex<Vec<(usize, usize)>>,
}

impl Science {
    pub(crate) fn on(device: Device) -> Self {
        match device {
            Device::Cpu => Self { models: Models::default(), gpus: Mutex::default() },
            Device::Cuda(gpus) => {
                let idle = gpus.iter().map(|gpu| (*gpu, 0)).collect();
                Self { models: Models::on_gpus(gpus), gpus: Mutex::new(idle) }
            }
        }
    }

    /// The GPU that fewest slots use, for as long as this is held; none where there are no GPUs.
    fn least_used(&self) -> Option<Used<'_>> {
        let mut gpus = self.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, slots) = gpus.iter_mut().min_by_key(|(_, slots)| *slots)?;
        *slots += 1;
        Some(Used { science: self, number: *number })
    }
}

/// A GPU that a slot uses.
struct Used<'a> {
    science: &'a Science,
    number: usize,
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        let mut gpus = self.science.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        gpus.iter_mut().filter(|(number, _)| *number == self.number).for_each(|(_, slots)| *slots -= 1);
    }
}

impl Execute for Science {
    fn execute(&self, work: &JobWork, inputs: &Inputs, sink: &mut dyn Sink) -> Result<Executed, ScienceError> {
        taskvec_science::execute(work, inputs, &self.models, sink)
    }

    fn execute_stack(&self, members: Vec<Member>) {
        match self.least_used() {
            None => taskvec_science::execute_stack(members, &self.models),
            Some(gpu) => gpu::execute_stack(members, &self.models, gpu.number),
        }
    }
}

impl Default for Science {
    fn default() -> Self {
        Self::on(Device::Cpu)
    }
}
