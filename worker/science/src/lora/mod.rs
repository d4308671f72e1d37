//! Fine-tuning of language models with low-rank adapters (Hu et al. 2021, "LoRA").
//!
//! The model's own weights stay as they are and are shared: [`Adapters`] are attached to a clone of the model, which costs
//! nothing but the adapters. They are kept and computed in 32-bit floats whatever the model is held in.
//!
//! | what | choice |
//! | --- | --- |
//! | adapter of a map `y = W·x + b` | `y + alpha/rank · B·A·dropout(x)` |
//! | at the beginning | A uniform in ± 1/√inputs (PEFT's default: Kaiming with a = √5), B zero: the model is unchanged |
//! | loss | cross-entropy of the answer's tokens and the one that ends it ([`crate::task`]), mean over those of the batch |
//! | optimiser | [`crate::optim`], over A and B |
//! | files | PEFT's names and configuration ([`peft`]) |
//!
//! Every random number is a function of the seed and of what it is for, so that training goes on from any step, in pieces of
//! any size and on any number of threads as if it had never been cut.

mod adapters;
mod checkpoint;
mod examples;
mod gradient;
mod module;
pub mod peft;
mod tune;

pub use adapters::Adapters;
pub use examples::Example;
pub use gradient::{DropoutAt, Gradients, gradients};
pub use tune::{Segment, tune_segment};

pub(crate) use checkpoint::read_weights;
