//! `x·W + b`, and what the other products with a weight share with it.

use crate::{
    buffer::{by_dtype, element_type, elements, filled, read, stored},
    dispatch::dispatch,
    float::Float,
    par, product, reference,
};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// `x·W + b`: `x` (…, inputs), `weight` (inputs, outputs) as in GPT-2's Conv1D, `bias` (outputs); gives (…, outputs).
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    check_shapes("linear", x, weight, bias)?;
    if !x.device().is_cpu() {
        return reference::linear(&x.contiguous()?, &weight.contiguous()?, bias);
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(element_type(x), self.name(), T => {
            let bias = elements::<T>(bias, bias_layout)?;
            let (x, weight) = (elements(x, x_layout)?, elements(weight, weight_layout)?);
            let size = Size::new(x_layout, weight_layout)?;
            let out = forward(size, x, weight, std::iter::repeat(()), |(), out| add_bias(out, bias));
            Ok((stored(out), size.output_shape(x_layout)))
        })
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let grad = &grad.contiguous()?;
        by_dtype!(x.dtype(), self.name(), T => plain_backward::<T>(x, weight, bias.track_op(), grad))
    }
}

/// Gradients of three arguments, where they are wanted.
pub(crate) type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

pub(crate) fn check_shapes(op: &str, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<()> {
    let (inputs, outputs) = weight.dims2()?;
    if inputs == 0 || outputs == 0 || x.dims().last() != Some(&inputs) || bias.dims() != [outputs] {
        candle_core::bail!(
            "{op}: x (…, inputs), weight (inputs, outputs) and bias (outputs) do not fit: {:?}, {:?}, {:?}",
            x.dims(),
            weight.dims(),
            bias.dims()
        );
    }
    Ok(())
}

/// The sizes of one product.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl Size {
    pub fn new(x: &Layout, weight: &Layout) -> Result<Self> {
        let (inputs, outputs) = weight.shape().dims2()?;
        Ok(Self { rows: x.shape().elem_count() / inputs, inputs, outputs })
    }

    pub fn output_shape(self, x: &Layout) -> Shape {
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.outputs;
        }
        dims.into()
    }

    /// Rows worked on at a time.
    pub fn chunk(self) -> usize {
        product::rows_at_a_time(self.inputs, self.outputs)
    }

    pub fn output_elements(self) -> usize {
        self.rows * self.outputs
    }

    /// What `par::each` decides by: a product costs more per element than anything else.
    fn work(self) -> usize {
        self.rows * self.inputs.max(self.outputs)
    }
}

/// `x·W`, each chunk of rows handed to `finish` (with its item of `extras`) while it is in the cache.
pub(crate) fn forward<T: Float, E: Send>(
    size: Size,
    x: &[T],
    weight: &[T],
    extras: impl Iterator<Item = E>,
    finish: impl Fn(E, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let fill = |out: &mut [MaybeUninit<T>]| {
        let jobs = out.chunks_mut(size.chunk() * size.outputs).zip(x.chunks(size.chunk() * size.inputs)).zip(extras);
        par::each(size.work(), jobs, |((out, x), extra)| {
            finish(extra, product::rows_times(out, x, weight, size.inputs, false));
        });
    };
    // SAFETY: there are as many chunks of `x` as of `out`, and `rows_times` writes all of each.
    unsafe { filled(size.output_elements(), fill).0 }
}

/// Gradients of `x` (where wanted) and of the bias, given the gradient of `x·W + b` by chunks of rows: `prepare` makes
/// each from its item of `jobs`, and may compute it then.
pub(crate) fn backward_rows<'a, T: Float, E: Send>(
    size: Size,
    weight: &[T],
    wants_x: bool,
    jobs: impl Iterator<Item = E>,
    prepare: impl Fn(E) -> &'a [T] + Sync + Send,
) -> (Option<Vec<T>>, Vec<T>) {
    let chunks = size.rows.div_ceil(size.chunk());
    let mut sums = vec![T::zero(); chunks * size.outputs];
    let x_elements = if wants_x { size.rows * size.inputs } else { 0 };
    let fill = |dx: &mut [MaybeUninit<T>]| {
        let dx = dx.chunks_mut(size.chunk() * size.inputs).map(Some).chain(std::iter::repeat_with(|| None));
        let jobs = jobs.zip(sums.chunks_mut(size.outputs)).zip(dx);
        par::each(size.work(), jobs, |((extra, sums), dx)| {
            let grad = prepare(extra);
            column_sums(grad, sums);
            if let Some(dx) = dx {
                product::rows_times(dx, grad, weight, size.outputs, true);
            }
        });
    };
    // SAFETY: `jobs` has one item per chunk of rows, and `rows_times` writes all of each.
    let (dx, ()) = unsafe { filled(x_elements, fill) };
    (wants_x.then_some(dx), sum_partials(&sums, size.outputs))
}

/// The backward of `x·W + b`.
pub(crate) fn plain_backward<T: Float>(x: &Tensor, weight: &Tensor, bias: bool, grad: &Tensor) -> Result<Gradients> {
    let (x_tensor, weight_tensor) = (x, weight);
    let size = Size::new(x.layout(), weight.layout())?;
    read!(x, weight, grad: T);
    let jobs = grad.chunks(size.chunk() * size.outputs);
    let (dx, dbias) = backward_rows(size, weight, x_tensor.track_op(), jobs, |grad| grad);
    let dweight = weight_tensor.track_op().then(|| product::gradient_of_weight(x, grad, size.inputs, size.outputs));
    gradients(x_tensor, weight_tensor, dx, dweight, bias.then_some(dbias))
}

pub(crate) fn gradients<T: Float>(
    x: &Tensor,
    weight: &Tensor,
    dx: Option<Vec<T>>,
    dweight: Option<Vec<T>>,
    dbias: Option<Vec<T>>,
) -> Result<Gradients> {
    let device = x.device();
    Ok((
        dx.map(|dx| Tensor::from_vec(dx, x.shape(), device)).transpose()?,
        dweight.map(|dw| Tensor::from_vec(dw, weight.shape(), device)).transpose()?,
        dbias.map(|db| Tensor::from_vec(db, weight.dim(1)?, device)).transpose()?,
    ))
}

/// Adds rows of partial sums, first to last.
pub(crate) fn sum_partials<T: Float>(partials: &[T], columns: usize) -> Vec<T> {
    let mut total = vec![T::zero(); columns];
    column_sums(partials, &mut total);
    total
}

dispatch! {
    /// Adds to `sums` the rows of `rows`, in order.
    pub(crate) fn column_sums<T: Float, I: Isa>(rows: &[T], sums: &mut [T]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

dispatch! {
    /// Adds `bias` to each row.
    pub(crate) fn add_bias<T: Float, I: Isa>(rows: &mut [T], bias: &[T]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (value, &bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    }
}
