//! Adam, one pass over parameter, gradient and both moments.

use crate::{
    buffer::{by_dtype, elements, read},
    dispatch::dispatch,
    float::Float,
    par,
};
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};
use std::cell::RefCell;

/// Adam's constants (Kingma and Ba 2015), with decoupled weight decay (Loshchilov and Hutter 2019); as in torch.optim.AdamW,
/// which without decay is torch.optim.Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    pub beta1: f64,
    pub beta2: f64,
    /// Added to the square root of the second moment after bias correction.
    pub epsilon: f64,
    /// Times the learning rate, the part of itself that each parameter loses before the update; 0 for none, which leaves
    /// every bit of a finite parameter as it is without.
    pub weight_decay: f64,
}

/// What one update multiplies with.
pub(crate) type Rates<T> = [T; 9];

/// Which update it is.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// From 1.
    pub t: u64,
    pub learning_rate: f64,
    /// What the gradient is multiplied with first (clipping).
    pub grad_scale: f64,
}

/// Elements updated at a time.
const CHUNK: usize = 1 << 14;

impl Adam {
    /// The factors of one update, computed in f64: 1 − 0.9999 in f32 would be wrong in its fourth digit.
    pub(crate) fn rates(&self, Update { t, learning_rate, grad_scale }: Update) -> Rates<f64> {
        let exponent = i32::try_from(t).unwrap_or(i32::MAX);
        let correction2 = 1.0 - self.beta2.powi(exponent);
        [
            grad_scale,
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            self.epsilon,
            learning_rate / (1.0 - self.beta1.powi(exponent)),
            1.0 / correction2.sqrt(),
            learning_rate * self.weight_decay,
        ]
    }

    /// One update in place. `t` is the 1-based step; the gradient is multiplied by `grad_scale` first (clipping).
    ///
    /// All four tensors are contiguous, on the CPU, alike in shape and type, and do not share memory.
    #[allow(clippy::too_many_arguments, reason = "the optimiser's state and its schedule, each with its own owner")]
    pub fn update(
        &self,
        param: &Tensor,
        grad: &Tensor,
        m: &Tensor,
        v: &Tensor,
        learning_rate: f64,
        t: u64,
        grad_scale: f64,
    ) -> Result<()> {
        if t == 0 || [grad, m, v].iter().any(|x| x.dims() != param.dims() || x.dtype() != param.dtype()) {
            candle_core::bail!(
                "Adam: step {t} of param {:?}, grad {:?}, m {:?}, v {:?}: steps count from 1, tensors must be alike",
                param.dims(),
                grad.dims(),
                m.dims(),
                v.dims()
            );
        }
        let rates = self.rates(Update { t, learning_rate, grad_scale });
        let grad = &grad.contiguous()?;
        by_dtype!(param.dtype(), "Adam", T => {
            read!(grad: T);
            let rates = rates.map(T::of);
            edit(param, |param| edit(m, |m| edit(v, |v| {
                let jobs = param.chunks_mut(CHUNK).zip(grad.chunks(CHUNK)).zip(m.chunks_mut(CHUNK)).zip(v.chunks_mut(CHUNK));
                par::each(grad.len() / 2, jobs, |(((param, grad), m), v)| step(param, grad, m, v, &rates));
                Ok(())
            })))
        })
    }
}

dispatch! {
    pub(crate) fn step<T: Float, I: Isa>(param: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], rates: &Rates<T>) {
        let [scale, beta1, rest1, beta2, rest2, epsilon, rate, correction, decay] = *rates;
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            let g = g * scale;
            *m = *m * beta1 + g * rest1;
            *v = *v * beta2 + g * g * rest2;
            // Both at once: one alone may be too small to change a large parameter.
            *p -= decay * *p + rate * *m / ((*v).square_root() * correction + epsilon);
        }
    }
}

/// Calls `work` with the elements of a contiguous tensor on the CPU, to be changed in place.
fn edit<T: Float, F: FnOnce(&mut [T]) -> Result<()>>(tensor: &Tensor, work: F) -> Result<()> {
    tensor.inplace_op1(&Edit { work: RefCell::new(Some(work)), element: std::marker::PhantomData::<fn(T)> })
}

struct Edit<T, F> {
    work: RefCell<Option<F>>,
    element: std::marker::PhantomData<fn(T)>,
}

impl<T: Float, F: FnOnce(&mut [T]) -> Result<()>> InplaceOp1 for Edit<T, F> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let len = elements::<T>(storage, layout)?.len();
        let start = layout.start_offset();
        let Some(work) = self.work.take() else { candle_core::bail!("an edit is made once") };
        work(&mut T::elements_mut(storage)?[start..start + len])
    }
}
