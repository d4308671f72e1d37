//! Every operation against its plain version, and gradients against finite differences.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{Case, Op, assert_close, language, outcome, tensor, values, vars};

fn compare(case: &Case, dtype: DType, tolerance: f64, arrange: impl Fn(&Var) -> Result<Tensor> + Copy) -> Result<()> {
    let vars = vars(case, dtype)?;
    compare_vars(case, &vars, tolerance, arrange)
}

fn compare_vars(
    case: &Case,
    vars: &[Var],
    tolerance: f64,
    arrange: impl Fn(&Var) -> Result<Tensor> + Copy,
) -> Result<()> {
    let (out, grads) = outcome(case, &case.fast, vars, arrange)?;
    let (want, want_grads) = outcome(case, &case.reference, vars, arrange)?;
    assert_close(&case.name, &out, &want, tolerance)?;
    for (i, (got, want)) in grads.iter().zip(&want_grads).enumerate() {
        assert_close(&format!("{}, gradient of argument {i}", case.name), got, want, tolerance)?;
    }
    Ok(())
}

#[test]
fn f64_agrees_with_the_reference() -> Result<()> {
    common::small()
        .iter()
        .chain(&common::large())
        .try_for_each(|case| compare(case, DType::F64, 1e-11, |v| Ok(v.as_tensor().clone())))
}

#[test]
fn f32_agrees_with_the_reference() -> Result<()> {
    common::small()
        .iter()
        .chain(&common::large())
        .try_for_each(|case| compare(case, DType::F32, 2e-5, |v| Ok(v.as_tensor().clone())))
}

#[test]
fn strided_and_offset_input_agrees_with_the_reference() -> Result<()> {
    for case in common::small().iter().chain(&common::large()) {
        // Memory in which the argument is part of a wider tensor, transposed where it has two dimensions.
        let vars = wider(case, |wide| {
            let last = wide.len() - 1;
            wide[last] += 3;
            if last > 0 {
                wide.swap(last - 1, last);
            }
        })?;
        compare_vars(case, &vars, 1e-11, |var| {
            let x =
                if var.rank() > 1 { var.transpose(var.rank() - 2, var.rank() - 1)? } else { var.as_tensor().clone() };
            x.narrow(x.rank() - 1, 2, x.dim(x.rank() - 1)? - 3)
        })?;
    }
    Ok(())
}

#[test]
fn rows_that_lie_apart_agree_with_the_reference() -> Result<()> {
    for case in common::small().iter().chain(&common::large()) {
        // Parts of wider rows, and some heads among others.
        for from_last in [1, 2] {
            let dim = |rank: usize| rank.saturating_sub(from_last);
            let vars = wider(case, |wide| wide[dim(wide.len())] += 2)?;
            compare_vars(case, &vars, 1e-11, |var| {
                let dim = dim(var.rank());
                var.narrow(dim, 1, var.dim(dim)? - 2)
            })?;
        }
    }
    Ok(())
}

#[test]
fn input_that_repeats_itself_agrees_with_the_reference() -> Result<()> {
    for case in common::small().iter().chain(&common::large()) {
        // Each argument is its first row, over and over: a stride of 0.
        let vars = wider(case, |shape| shape[0] = 1)?;
        let arrange = |var: &Var| {
            let argument = vars.iter().position(|v| v.id() == var.id());
            var.broadcast_as(case.shapes[argument.expect("one of the arguments")].as_slice())
        };
        let all = |op| -> Result<Vec<Vec<f64>>> {
            let (out, grads) = outcome(case, op, &vars, arrange)?;
            std::iter::once(&out).chain(&grads).map(values).collect()
        };
        let (got, want) = (all(&case.fast)?, all(&case.reference)?);
        // Where all keys are alike some gradients are zero in exact arithmetic: what is left is the rounding of the others.
        let scale = want.iter().flatten().fold(1e-3, |a: f64, b| a.max(b.abs()));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let close = got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-11 * scale);
            assert!(close && got.len() == want.len(), "{}, output and gradients: {i}", case.name);
        }
    }
    Ok(())
}

/// Variables of other shapes than the case's.
fn wider(case: &Case, widen: impl Fn(&mut [usize])) -> Result<Vec<Var>> {
    let vars = case.shapes.iter().enumerate().map(|(i, shape)| {
        let mut wide = shape.clone();
        widen(&mut wide);
        Var::from_tensor(&tensor(i as u64 + 1, &wide, DType::F64)?)
    });
    vars.collect()
}

/// The sum of the output, weighted as in `outcome`.
fn weighted_sum(op: &Op, args: &[Tensor]) -> Result<f64> {
    let out = op(args)?;
    (&out * tensor(99, out.dims(), out.dtype())?)?.sum_all()?.to_scalar()
}

#[test]
fn gradients_agree_with_finite_differences() -> Result<()> {
    const STEP: f64 = 1e-5;
    for case in common::small().iter().filter(|c| c.shapes.iter().flatten().product::<usize>() < 1 << 18) {
        let vars = vars(case, DType::F64)?;
        let (_, grads) = outcome(case, &case.fast, &vars, |v| Ok(v.as_tensor().clone()))?;
        let args: Vec<Tensor> = vars.iter().map(|v| v.as_detached_tensor()).collect();
        for (i, grad) in grads.iter().enumerate() {
            let (base, grad) = (values(&args[i])?, values(grad)?);
            // At most 40 elements of each argument, spread over it.
            for element in (0..base.len()).step_by(base.len().div_ceil(40)) {
                let shifted = |by: f64| {
                    let mut args = args.clone();
                    let mut data = base.clone();
                    data[element] += by;
                    args[i] = Tensor::from_vec(data, args[i].shape(), &Device::Cpu)?;
                    weighted_sum(&case.fast, &args)
                };
                let numeric = (shifted(STEP)? - shifted(-STEP)?) / (2.0 * STEP);
                let error = (grad[element] - numeric).abs() / (1.0 + numeric.abs());
                assert!(
                    error < 1e-7,
                    "{}, argument {i}, element {element}: {} and {numeric}",
                    case.name,
                    grad[element]
                );
            }
        }
    }
    Ok(())
}

#[test]
fn untracked_arguments_get_no_gradient_and_no_work() -> Result<()> {
    for case in common::small() {
        let vars = vars(&case, DType::F64)?;
        let (_, all) = outcome(&case, &case.fast, &vars, |v| Ok(v.as_tensor().clone()))?;
        for alone in 0..case.tracked {
            let args: Vec<Tensor> = vars
                .iter()
                .enumerate()
                .map(|(i, v)| if i == alone { v.as_tensor().clone() } else { v.as_detached_tensor() })
                .collect();
            let out = (case.fast)(&args)?;
            let grads = (&out * tensor(99, out.dims(), out.dtype())?)?.sum_all()?.backward()?;
            assert_eq!(grads.get(&vars[alone]).map(values).transpose()?, Some(values(&all[alone])?), "{}", case.name);
            for (i, arg) in args.iter().enumerate().filter(|(i, _)| *i != alone) {
                assert!(grads.get(arg).is_none(), "{}: argument {i} is not tracked", case.name);
            }
        }
    }
    Ok(())
}

#[test]
fn nan_in_gives_nan_out() -> Result<()> {
    for case in common::small() {
        for dtype in [DType::F32, DType::F64] {
            let args = vars(&case, dtype)?;
            for i in 0..args.len() {
                let mut args: Vec<Tensor> = args.iter().map(|v| v.as_detached_tensor()).collect();
                let mut data = values(&args[i])?;
                data[0] = f64::NAN;
                args[i] = Tensor::from_vec(data, args[i].shape(), &Device::Cpu)?.to_dtype(dtype)?;
                let out = values(&(case.fast)(&args)?)?;
                // A single key is attended to whatever the score, so a NaN in the query shows only through the score.
                assert!(out.iter().any(|x| x.is_nan()), "{}: NaN in argument {i} is lost", case.name);
            }
            let out = (case.fast)(&args.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())?;
            let grads = out.affine(f64::NAN, 0.0)?.sum_all()?.backward()?;
            for (i, var) in args[..case.tracked].iter().enumerate() {
                let grad = grads.get(var).map(values).transpose()?.unwrap_or_default();
                assert!(grad.iter().any(|x| x.is_nan()), "{}: NaN is lost on the way to argument {i}", case.name);
            }
        }
    }
    Ok(())
}

#[test]
fn extreme_input_gives_finite_output_and_gradients() -> Result<()> {
    let mut cases = vec![common::attention(2, 9, 10, 2), common::layer_norm(&[6], 5), common::mse(3, 4)];
    cases.extend(common::linears(&[6], 5, 5));
    cases.extend(language::linears_t(&[6], 5, 5));
    cases.extend([language::rms_norm(&[6], 5), language::cross_entropy(3, 5), language::rotate(3, 2, 6, 2)]);
    cases.extend(language::gates(&[6, 5]));
    cases.extend([None, Some(30.0)].map(|cap| language::attend(((2, 1, 8), language::alone(&[9, 3]), cap, None))));
    for case in cases {
        for size in [1e-30, 1e2, 1e4, 1e15] {
            let vars = vars(&case, DType::F32)?;
            vars[0].set(&(vars[0].as_tensor() * size)?)?;
            let (out, grads) = outcome(&case, &case.fast, &vars, |v| Ok(v.as_tensor().clone()))?;
            for (what, tensor) in [("output", &out)].into_iter().chain(grads.iter().map(|g| ("gradient", g))) {
                assert!(values(tensor)?.iter().all(|x| x.is_finite()), "{} at {size}: {what} is not finite", case.name);
            }
        }
    }
    Ok(())
}

#[test]
fn empty_batches_are_empty() -> Result<()> {
    let [linear, gelu, residual] = common::linears(&[0, 3], 4, 5);
    let mut cases = vec![linear, gelu, residual, common::layer_norm(&[0], 4), common::attention(0, 3, 4, 2)];
    cases.extend(language::linears_t(&[0, 3], 4, 5));
    cases.extend(language::gates(&[0, 4]));
    cases.extend([language::rms_norm(&[0], 4), language::rotate(0, 2, 4, 2)]);
    cases.extend([vec![], language::alone(&[0, 0])].map(|spans| language::attend(((4, 2, 8), spans, None, None))));
    for case in cases {
        let args: Vec<Tensor> = vars(&case, DType::F32)?.iter().map(|v| v.as_detached_tensor()).collect();
        assert_eq!((case.fast)(&args)?.elem_count(), 0, "{}", case.name);
    }
    Ok(())
}

#[test]
fn attention_does_not_look_ahead() -> Result<()> {
    let (t, d) = (20, 8);
    let qkv = tensor(1, &[1, t, 3 * d], DType::F64)?;
    let before = values(&taskvec_kernels::causal_attention(&qkv, 2)?)?;
    for changed in 1..t {
        let mut data = values(&qkv)?;
        data[changed * 3 * d..].iter_mut().for_each(|x| *x += 1.0);
        let qkv = Tensor::from_vec(data, (1, t, 3 * d), &Device::Cpu)?;
        let after = values(&taskvec_kernels::causal_attention(&qkv, 2)?)?;
        assert_eq!(before[..changed * d], after[..changed * d], "positions before {changed}");
        assert_ne!(before[changed * d..(changed + 1) * d], after[changed * d..(changed + 1) * d]);
    }
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused_by_name() -> Result<()> {
    let x = |shape: &[usize]| tensor(1, shape, DType::F32);
    let errors = [
        taskvec_kernels::linear(&x(&[2, 3])?, &x(&[4, 5])?, &x(&[5])?),
        taskvec_kernels::linear_gelu(&x(&[2, 3])?, &x(&[3, 5])?, &x(&[4])?),
        taskvec_kernels::linear_residual(&x(&[2, 3])?, &x(&[3, 5])?, &x(&[5])?, &x(&[1, 5])?),
        taskvec_kernels::layer_norm(&x(&[2, 3])?, &x(&[3])?, &x(&[2])?, 1e-5),
        taskvec_kernels::causal_attention(&x(&[1, 2, 12])?, 3),
        taskvec_kernels::mse_at(&x(&[2, 3])?, &x(&[3, 2])?),
    ];
    let names = ["linear", "linear_gelu", "linear_residual", "layer_norm", "causal_attention", "mse_at"];
    for (result, name) in errors.into_iter().zip(names) {
        let message = result.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.starts_with(&format!("{name}:")), "{name}: {message}");
    }
    Ok(())
}
