//! The operations that training and language models spend their time in, on candle tensors: f32 and, for gradient
//! checks, f64, on the CPU.
//!
//! Each is a custom op with its backward, compared with the plain version in [`reference`](mod@reference) by the tests.
//! What they share:
//! - results do not depend on the number of threads: work is split into pieces of a fixed size and partial sums are
//!   added in a fixed order, or no sum depends on how the work is split. Threads are those of the rayon pool the caller
//!   is in;
//! - loops are compiled for AVX-512, AVX2 and the plain target and chosen when called (`dispatch`);
//! - input may be strided; NaN in gives NaN out;
//! - gradients are computed only for what is tracked.
//!
//! Two families:
//! - synthetic models, of sequences of one length, (B, T, d): [`linear`](linear()),
//!   [`linear_gelu`](linear_gelu()), [`linear_residual`](linear_residual()), [`layer_norm`](layer_norm()),
//!   [`causal_attention`], [`mse_at`], [`Adam`];
//! - language models, of rows of any length one after the other, (N, …) (see [`Span`]): [`linear_t`](linear_t()) with
//!   weights also in bf16, [`linear_t_residual`], [`rms_norm`](rms_norm()), [`rotate`](rotate()), [`gated`](gated()),
//!   [`attend`](attend()), [`cross_entropy`](cross_entropy()). These take rows that lie apart (a part of a wider matrix)
//!   without a copy, but for `linear_t`, which copies them. Where no gradient is wanted, what products with weights in bf16 read
//!   may be made in bf16: [`rms_norm_rounded`], [`gated_linear`](gated_linear()), [`rounded`](rounded()).
//!
//! This is the only crate of the workspace that may use `unsafe`.

mod adam;
mod aligned;
mod attend;
mod attend_backward;
mod attend_block;
mod attention;
mod brain;
mod buffer;
mod cross_entropy;
pub mod cuda;
mod dispatch;
mod float;
mod gated;
mod gated_linear;
mod lanes;
mod language;
mod layer_norm;
mod linear;
mod linear_gelu;
mod linear_residual;
mod linear_t;
mod mse;
#[cfg(target_arch = "x86_64")]
mod panel;
mod par;
mod precision;
pub mod process;
mod product;
pub mod reference;
mod rms_norm;
mod rotate;
mod rounded;
mod rounding;
pub mod slices;
mod sum;
mod tile;
mod transpose;
mod weight;

pub use adam::Adam;
pub use attend::attend;
pub use attention::causal_attention;
pub use brain::{Pairs, pairs as bf16_pairs};
pub use cross_entropy::cross_entropy;
pub use gated::gated;
pub use gated_linear::gated_linear;
pub use language::{Activation, Attend, Rotary, Span};
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use linear_gelu::linear_gelu;
pub use linear_residual::linear_residual;
pub use linear_t::{linear_t, linear_t_residual};
pub use mse::mse_at;
pub use precision::Precision;
pub use rms_norm::{rms_norm, rms_norm_rounded};
pub use rotate::rotate;
pub use rounded::rounded;
pub use sum::sum_of_squares;
