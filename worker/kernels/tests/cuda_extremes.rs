//! What is not a number, and what is very large or very small, in every CUDA kernel, executed on the CPU.

mod common;
#[path = "../cuda/emulate/emulator.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod emulator;

use common::numbers;
use emulator::{Memory, Place};
use taskvec_kernels::{
    Activation,
    cuda::{
        Call,
        attention::Attention,
        language::{Gates, NORM, Targets, Turned, rotate},
        layers::*,
        training::Rings,
    },
};

/// A kernel with its f32 inputs and outputs: how many elements each has.
struct Kernel {
    name: &'static str,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    call: Box<Calls>,
}

type Calls = dyn Fn(&mut Memory, &[Place], &[Place]) -> Vec<Call<Place>>;

fn kernel<const I: usize, const O: usize>(
    name: &'static str,
    inputs: [usize; I],
    outputs: [usize; O],
    call: impl Fn(&mut Memory, [Place; I], [Place; O]) -> Vec<Call<Place>> + 'static,
) -> Kernel {
    let call = move |memory: &mut Memory, inputs: &[Place], outputs: &[Place]| {
        call(memory, inputs.try_into().expect("as many"), outputs.try_into().expect("as many"))
    };
    Kernel { name, inputs: inputs.to_vec(), outputs: outputs.to_vec(), call: Box::new(call) }
}

impl Kernel {
    /// The outputs for numbers of which the first input's are `scale` times as large, and one is another.
    fn outputs(&self, scale: f64, changed: Option<(usize, f32)>) -> Vec<Vec<f32>> {
        let mut memory = Memory::default();
        let mut inputs = Vec::new();
        for (i, &len) in self.inputs.iter().enumerate() {
            let scale = if i == 0 { scale } else { 1.0 };
            let mut values: Vec<f32> = numbers(i as u64 + 1, len).into_iter().map(|x| (x * scale) as f32).collect();
            if let Some((input, value)) = changed
                && input == i
            {
                values[0] = value;
            }
            inputs.push(memory.floats(&values));
        }
        let outputs: Vec<Place> = self.outputs.iter().map(|&len| memory.room(len)).collect();
        for call in (self.call)(&mut memory, &inputs, &outputs) {
            memory.run(&call);
        }
        outputs.into_iter().map(|place| memory.read_floats(place)).collect()
    }
}

const OF: Stacked = Stacked { runs: 1, rows: 6, width: 5, stride: 0 };
const N: usize = 30;

fn norms() -> Vec<Kernel> {
    vec![
        kernel("layer_norm", [N, 5, 5], [N], |_, [x, w, b], [out]| vec![layer_norm(OF, 1e-5, [x, w, b, out])]),
        kernel("rms_norm", [N, 5], [N], |_, [x, w], [out]| vec![rms_norm(OF, 1e-5, [x, w, out])]),
        kernel("layer_norm_residual", [N, N, 5, 5, 5], [N, N], |_, [x, r, a, w, b], [sum, out]| {
            vec![layer_norm_residual(OF, 1e-5, [x, r, sum], Some(a), [w, b, out])]
        }),
        kernel("rms_norm_residual", [N, N, 5, 5], [N, N], |_, [x, r, a, w], [sum, out]| {
            vec![rms_norm_residual(OF, 1e-5, [x, r, sum], Some(a), [w, out])]
        }),
        kernel("layer_norm_backward", [N, 5, N], [N, 10], |memory, [x, w, g], [dx, parts]| {
            let zeros = memory.floats(&[0.0; N]);
            let sum = bias_residual(Stacked { width: N, rows: 1, ..OF }, [zeros, zeros, dx], None);
            vec![sum, layer_norm_backward(OF, 1e-5, [x, w, g, dx, parts])]
        }),
        kernel("layer_norm_backward_sums", [N, 5, N], [N, 15], |memory, [x, w, g], [dx, parts]| {
            let zeros = memory.floats(&[0.0; N]);
            let sum = bias_residual(Stacked { width: N, rows: 1, ..OF }, [zeros, zeros, dx], None);
            vec![sum, layer_norm_backward_sums(OF, 1e-5, [x, w, g, dx, parts])]
        }),
        kernel("rms_norm_backward", [N, 5, N], [N, 5], |memory, [x, w, g], [dx, parts]| {
            let zeros = memory.floats(&[0.0; N]);
            let sum = bias_residual(Stacked { width: N, rows: 1, ..OF }, [zeros, zeros, dx], None);
            vec![sum, rms_norm_backward(OF, 1e-5, [x, w, g, dx, parts])]
        }),
    ]
}

fn elementwise() -> Vec<Kernel> {
    let mut kernels = vec![
        kernel("bias_gelu", [N, 5], [N, N], |_, [x, b], [out, slope]| vec![bias_gelu(OF, [x, b, out], Some(slope))]),
        kernel("gelu_backward", [N, N], [N], |_, [g, s], [out]| vec![gelu_backward(OF, [g, s, out])]),
        kernel("gelu_backward_sums", [N, N], [N, 5], |_, [g, s], [out, parts]| {
            vec![gelu_backward_sums(OF, [g, s, out, parts])]
        }),
        kernel("bias_residual", [N, 5, N], [N], |_, [x, b, r], [out]| vec![bias_residual(OF, [x, b, out], Some(r))]),
        kernel("bias_positions", [N, 5, 10], [N], |_, [x, b, p], [out]| vec![bias_positions(OF, 2, [x, b, p, out])]),
        kernel("sums", [N], [5, 5], |_, [x], [parts, out]| {
            vec![column_sums(OF, [x, parts]), sum_partials(OF, parts, (out, 5), None)]
        }),
        kernel("even rows", [N], [15, N], |_, [x], [half, out]| {
            vec![gather_even(3, 5, [x, half]), scatter_even(3, 5, [half, out])]
        }),
        kernel("one of two rows", [N], [15], |_, [x], [out]| vec![gather_every(3, 5, (0, 2), [x, out])]),
        kernel("rotate", [24, 6, 6], [24], |_, [x, cos, sin], [out]| {
            vec![rotate(Turned { tokens: 3, heads: 2, dim: 4, pairs: 2 }, false, [x, cos, sin, out])]
        }),
    ];
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let of = Gates { activation, rows: 6, width: 5, strides: [5, 5] };
        kernels.push(kernel("gated", [N, N], [N], move |_, [gate, up], [out]| vec![of.forward([gate, up, out])]));
        kernels.push(kernel("gated_backward", [N, N, N], [N, N], move |_, [gate, up, g], [dgate, dup]| {
            vec![of.backward([gate, up, g], [Some(dgate), Some(dup)])]
        }));
    }
    kernels
}

fn others() -> Vec<Kernel> {
    let attention = Attention { sequences: 2, tokens: 9, width: 10, heads: 2, shared: 2000 };
    let (d, of) = (180, Targets { rows: 4, classes: 5, targets: 3 });
    let inputs = |memory: &mut Memory, logits| [logits, memory.words(&[0, 1, 3]), memory.words(&[2, 0, 4])];
    vec![
        kernel("attention", [3 * d], [d], move |_, [qkv], [out]| vec![attention.forward([qkv, out])]),
        kernel("attention_backward", [3 * d, d], [3 * d], move |_, [qkv, g], [out]| {
            vec![attention.backward([qkv, g, out])]
        }),
        kernel("cross_entropy", [20], [15], move |memory, [logits], [slopes]| {
            let inputs = inputs(memory, logits);
            let (losses, norms) = (memory.unwritten(24), memory.unwritten(3 * NORM));
            vec![of.forward(inputs, [losses, norms]), of.backward(inputs, 0.25, [norms, slopes])]
        }),
        kernel("mse", [N, N], [N], |memory, [p, t], [gradient]| {
            let (step, losses) = (memory.longs(&[3]), memory.unwritten(32));
            vec![Rings { runs: 1, slots: 2 }.mse(N, [p, t, step, gradient, losses])]
        }),
    ]
}

fn all() -> impl Iterator<Item = Kernel> {
    [norms(), elementwise(), others()].into_iter().flatten()
}

#[test]
fn nan_in_gives_nan_out() {
    if !emulator::available() {
        return;
    }
    for kernel in all() {
        let clean = kernel.outputs(1.0, None);
        assert!(clean.iter().flatten().all(|x| x.is_finite()), "{}: not all of it is written: {clean:?}", kernel.name);
        for input in 0..kernel.inputs.len() {
            let out = kernel.outputs(1.0, Some((input, f32::NAN)));
            assert!(out.iter().flatten().any(|x| x.is_nan()), "{}: NaN in input {input} is lost", kernel.name);
        }
    }
}

#[test]
fn extreme_input_gives_finite_output() {
    if !emulator::available() {
        return;
    }
    for kernel in all() {
        for scale in [1e-30, 1e2, 1e4] {
            let out = kernel.outputs(scale, None);
            assert!(out.iter().flatten().all(|x| x.is_finite()), "{} at {scale:e}: {out:?}", kernel.name);
        }
    }
}
