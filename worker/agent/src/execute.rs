//! What computes jobs.

use crate::config::Device;
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

/// [`taskvec_science::execute`] and [`taskvec_science::execute_stack`], with training on a GPU where the worker has one.
pub struct Science {
    /// Shared by all slots.
    models: Models,
    device: Device,
}

impl Science {
    pub(crate) fn on(device: Device) -> Self {
        Self { models: Models::default(), device }
    }
}

impl Execute for Science {
    fn execute(&self, work: &JobWork, inputs: &Inputs, sink: &mut dyn Sink) -> Result<Executed, ScienceError> {
        taskvec_science::execute(work, inputs, &self.models, sink)
    }

    fn execute_stack(&self, members: Vec<Member>) {
        match self.device {
            Device::Cpu => taskvec_science::execute_stack(members, &self.models),
            Device::Cuda(ordinal) => gpu::execute_stack(members, &self.models, ordinal),
        }
    }
}

impl Default for Science {
    fn default() -> Self {
        Self::on(Device::Cpu)
    }
}
