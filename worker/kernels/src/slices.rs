//! The operations of the synthetic models' training on plain slices, for an engine that keeps its own memory: no tensors,
//! no graph, nothing is allocated, and each call runs on the caller's thread alone.
//!
//! Matrices are row-major. Lengths that do not fit panic, as out-of-bounds indices do.

pub use crate::adam::Update;
pub use crate::float::Float;
use crate::{
    Precision, adam, attention,
    buffer::unread,
    dispatch::dispatch,
    precision::Terms,
    product, sum,
    weight::{self, Order, Weight},
};

/// Products with weights, and what is done with each as it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Products {
    pub precision: Precision,
}

impl Products {
    /// `out = x·W + b`: `x` (n, inputs), `W` (inputs, outputs), `b` (outputs).
    pub fn linear(self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        let inputs = weight.len() / bias.len();
        self.product(x, weight, inputs, Order::ByTerm, out, |_, out| crate::linear::add_bias(out, bias));
    }

    /// `out = x·Wᵀ + b` with `W` (outputs, inputs).
    pub fn linear_t(self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        let inputs = weight.len() / bias.len();
        self.product(x, weight, inputs, Order::ByColumn, out, |_, out| crate::linear::add_bias(out, bias));
    }

    /// `out = residual + x·W + b`.
    pub fn linear_residual(self, x: &[f32], weight: &[f32], bias: &[f32], residual: &[f32], out: &mut [f32]) {
        assert_eq!(residual.len(), out.len());
        let inputs = weight.len() / bias.len();
        self.product(x, weight, inputs, Order::ByTerm, out, |range, out| add_both(out, bias, &residual[range]));
    }

    /// `out = gelu(x·W + b)`, and GELU's derivative at each element in `slope`.
    pub fn linear_gelu(self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32], slope: &mut [f32]) {
        assert_eq!(slope.len(), out.len());
        let slope = std::cell::RefCell::new(slope);
        self.product(x, weight, weight.len() / bias.len(), Order::ByTerm, out, |range, out| {
            crate::linear_gelu::bias_gelu_with_slope(out, bias, unread(&mut slope.borrow_mut()[range]));
        });
    }

    /// `dx = grad·Wᵀ` for `y = x·W`.
    pub fn gradient_of_input(self, grad: &[f32], weight: &[f32], outputs: usize, dx: &mut [f32]) {
        self.product(grad, weight, outputs, Order::ByColumn, dx, |_, _| {});
    }

    /// `dx = grad·W` for `y = x·Wᵀ`.
    pub fn gradient_of_input_t(self, grad: &[f32], weight: &[f32], outputs: usize, dx: &mut [f32]) {
        self.product(grad, weight, outputs, Order::ByTerm, dx, |_, _| {});
    }

    /// `dx = (grad·Wᵀ) · slope`, by element.
    pub fn gradient_before_gelu(self, grad: &[f32], weight: &[f32], outputs: usize, slope: &[f32], dx: &mut [f32]) {
        assert_eq!(slope.len(), dx.len());
        self.product(grad, weight, outputs, Order::ByColumn, dx, |range, dx| scale(dx, &slope[range]));
    }

    /// `dW = xᵀ·grad` (inputs, outputs) and `db`, the sum of grad's rows.
    pub fn gradient_of_linear(self, x: &[f32], grad: &[f32], dweight: &mut [f32], dbias: &mut [f32]) {
        let outputs = dbias.len();
        self.gradient_of_weight(x, grad, outputs, dweight);
        dbias.fill(0.0);
        crate::linear::column_sums(grad, dbias);
    }

    /// The same for `W` (outputs, inputs): `dW = gradᵀ·x`.
    pub fn gradient_of_linear_t(self, x: &[f32], grad: &[f32], dweight: &mut [f32], dbias: &mut [f32]) {
        self.gradient_of_weight(grad, x, dweight.len() / dbias.len(), dweight);
        dbias.fill(0.0);
        crate::linear::column_sums(grad, dbias);
    }

    /// `out = x·W`, a chunk of rows at a time, each then handed to `finish` with its range of `out`'s elements while it is in
    /// the cache. W is (inputs, outputs), or (outputs, inputs) by column.
    fn product(
        self,
        x: &[f32],
        weight: &[f32],
        inputs: usize,
        order: Order,
        out: &mut [f32],
        finish: impl Fn(std::ops::Range<usize>, &mut [f32]),
    ) {
        let outputs = weight.len() / inputs;
        let rows = product::rows_at_a_time(inputs, outputs);
        assert!(outputs * inputs == weight.len() && x.len() / inputs * outputs == out.len());
        let of_weight = match order {
            Order::ByTerm => Terms::Across(outputs),
            Order::ByColumn => Terms::Along,
        };
        self.precision.rounded([(x, Terms::Along), (weight, of_weight)], inputs, |x, elements| {
            let weight = Weight { elements, depth: inputs / elements.terms(), columns: outputs, order };
            weight::alone(x, weight, out, rows, finish);
        });
    }

    /// `out = aᵀ·b` for `a` (n, …) and `b` (n, columns).
    fn gradient_of_weight(self, a: &[f32], b: &[f32], columns: usize, out: &mut [f32]) {
        let (rows, depth) = (out.len() / columns, b.len() / columns);
        assert!(rows * columns == out.len() && depth * columns == b.len() && depth * rows == a.len());
        let factors = [(a, Terms::Across(rows)), (b, Terms::Across(columns))];
        self.precision.rounded(factors, depth, |a, elements| {
            let b = Weight { elements, depth: depth / elements.terms(), columns, order: Order::ByTerm };
            weight::alone(a, b, out, rows, |_, _| {});
        });
    }
}

/// Layer norm of rows as wide as `weight`.
pub fn layer_norm<T: Float>(x: &[T], weight: &[T], bias: &[T], epsilon: f64, out: &mut [T]) {
    assert!(x.len() == out.len() && bias.len() == weight.len());
    crate::layer_norm::forward(x, weight, bias, T::of(epsilon), unread(out));
}

/// Adds to `dx` the gradient by `x` of a layer norm, given that by its output; writes those by weight and bias to
/// `dparameters`.
pub fn layer_norm_backward<T: Float>(
    x: &[T],
    weight: &[T],
    grad: &[T],
    epsilon: f64,
    dx: &mut [T],
    [dweight, dbias]: [&mut [T]; 2],
) {
    assert!(x.len() == dx.len() && x.len() == grad.len());
    dweight.fill(T::zero());
    dbias.fill(T::zero());
    crate::layer_norm::add_backward_rows(x, weight, grad, T::of(epsilon), dx, [dweight, dbias]);
}

/// The sequences that attention works on.
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    /// Tokens of each, T.
    pub tokens: usize,
    /// Width of the model, d.
    pub width: usize,
    pub heads: usize,
}

/// Causal attention as [`causal_attention`](crate::causal_attention()): `qkv` (sequences, T, 3d) to (sequences, T, d).
pub fn causal_attention<T: Float>(qkv: &[T], of: Sequences, out: &mut [T]) {
    assert_eq!(qkv.len(), 3 * out.len());
    attention::forward(qkv, attention::Size::new(of.tokens, 3 * of.width, of.heads), unread(out));
}

/// The gradient by `qkv`, given that by the output.
pub fn causal_attention_backward<T: Float>(qkv: &[T], grad: &[T], of: Sequences, dqkv: &mut [T]) {
    assert!(qkv.len() == 3 * grad.len() && qkv.len() == dqkv.len());
    attention::backward(qkv, grad, attention::Size::new(of.tokens, 3 * of.width, of.heads), unread(dqkv));
}

/// `out += a`.
pub fn add<T: Float>(out: &mut [T], a: &[T]) {
    assert_eq!(out.len(), a.len());
    crate::linear_residual::add(out, a);
}

/// One update of Adam, with gradients that are `scale` times `grad`: see [`Adam::update`](crate::Adam::update).
pub fn adam<T: Float>(adam: &crate::Adam, param: &mut [T], grad: &[T], [m, v]: [&mut [T]; 2], at: Update) {
    assert!(param.len() == grad.len() && m.len() == grad.len() && v.len() == grad.len());
    adam::step(param, grad, m, v, &adam.rates(at).map(T::of));
}

/// `out = Σ parts`, first to last, and the sum of its squares.
pub fn summed<T: Float>(parts: &[&[T]], out: &mut [T]) -> f64 {
    let (first, rest) = parts.split_first().expect("a sum has parts");
    out.copy_from_slice(first);
    rest.iter().for_each(|part| crate::linear_residual::add(out, part));
    sum::squares(out)
}

dispatch! {
    /// The squared Euclidean distances of a point to `points`, as wide as it is: differences are squared and summed in eight
    /// partial sums, an order that does not depend on the machine, without fusing.
    pub fn squared_distances<T: Float, I: Isa>(point: &[T], points: &[T], out: &mut [T]) {
        assert_eq!(point.len() * out.len(), points.len());
        let (parts, rest) = point.as_chunks::<8>();
        for (out, other) in out.iter_mut().zip(points.chunks_exact(point.len())) {
            let (others, other_rest) = other.as_chunks::<8>();
            let mut sums = [T::zero(); 8];
            for (a, b) in parts.iter().zip(others) {
                for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                    *sum += (a - b) * (a - b);
                }
            }
            let rest = rest.iter().zip(other_rest).fold(T::zero(), |sum, (&a, &b)| sum + (a - b) * (a - b));
            *out = sums.into_iter().fold(T::zero(), |sum, part| sum + part) + rest;
        }
    }
}

dispatch! {
    /// Adds `bias` and its own residual to each row.
    fn add_both<T: Float, I: Isa>(rows: &mut [T], bias: &[T], residual: &[T]) {
        for (row, residual) in rows.chunks_exact_mut(bias.len()).zip(residual.chunks_exact(bias.len())) {
            for ((value, &bias), &residual) in row.iter_mut().zip(bias).zip(residual) {
                *value = *value + bias + residual;
            }
        }
    }
}

dispatch! {
    fn scale<T: Float, I: Isa>(values: &mut [T], by: &[T]) {
        for (value, &by) in values.iter_mut().zip(by) {
            *value *= by;
        }
    }
}
