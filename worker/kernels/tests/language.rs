//! What the operations of language models promise beyond agreeing with their plain versions.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{assert_close, language::*, tensor, values};
use taskvec_kernels::{self as fast, Attend, Rotary, Span, reference};

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

const PLAIN: Attend = Attend { scale: 0.4, softcap: None, window: None };

/// Queries, keys and values of so many tokens, in 4 heads, 2 groups of 24.
fn tokens(queries: usize, keys: usize, dtype: DType) -> Result<[Tensor; 3]> {
    let keys = [2, 3].map(|seed| tensor(seed, &[keys, 2, 24], dtype));
    let [k, v] = keys;
    Ok([tensor(1, &[queries, 4, 24], dtype)?, k?, v?])
}

#[test]
fn a_row_of_linear_t_does_not_depend_on_the_others() -> Result<()> {
    let (x, weight) = (tensor(1, &[530, 700], DType::F32)?, tensor(2, &[100, 700], DType::F32)?);
    let all = fast::linear_t(&x, &weight, None)?;
    for (start, len) in [(0, 1), (3, 5), (17, 8), (500, 30), (529, 1)] {
        let part = fast::linear_t(&x.narrow(0, start, len)?, &weight, None)?;
        assert_eq!(bits(&part)?, bits(&all.narrow(0, start, len)?)?, "rows {start} to {}", start + len);
    }
    for (start, len) in [(0, 1), (5, 60), (99, 1)] {
        let part = fast::linear_t(&x, &weight.narrow(0, start, len)?, None)?;
        assert_eq!(bits(&part)?, bits(&all.narrow(1, start, len)?.contiguous()?)?, "columns from {start}");
    }
    Ok(())
}

#[test]
fn what_is_added_to_a_product_at_once_gives_the_bytes_of_adding_it_later() -> Result<()> {
    for (rows, inputs, outputs) in [(1, 1, 1), (9, 300, 70), (600, 40, 97), (530, 1600, 50), (3, 4100, 48)] {
        let x = tensor(1, &[rows, inputs], DType::F32)?;
        let weight = tensor(2, &[outputs, inputs], DType::F32)?;
        let residual = tensor(3, &[rows, outputs], DType::F32)?;
        for weight in [weight.clone(), weight.to_dtype(DType::BF16)?] {
            let later = (&residual + fast::linear_t(&x, &weight, None)?)?;
            let at_once = fast::linear_t_residual(&x, &weight, None, &residual)?;
            assert_eq!(bits(&at_once)?, bits(&later)?, "{rows} × {inputs} × {outputs} in {:?}", weight.dtype());
        }
    }
    Ok(())
}

/// `x·Wᵀ + b` and its gradient by `x`.
fn linear_and_gradient(x: &Var, weight: &Tensor, bias: &Tensor) -> Result<(Tensor, Vec<f64>)> {
    let out = fast::linear_t(x, weight, Some(bias))?;
    let grads = (&out * tensor(99, out.dims(), out.dtype())?)?.sum_all()?.backward()?;
    let grad = grads.get(x).cloned().ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
    Ok((out.detach(), values(&grad)?))
}

#[test]
fn weights_in_bf16_beside_f64_give_what_their_values_give() -> Result<()> {
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 300, 70), (20, 61, 49), (600, 40, 100)] {
        let x = Var::from_tensor(&tensor(1, &[rows, inputs], DType::F64)?)?;
        let bias = tensor(3, &[outputs], DType::F64)?;
        let result = |weight: &Tensor| {
            let (out, grad) = linear_and_gradient(&x, weight, &bias)?;
            Ok::<_, candle_core::Error>((values(&out)?, grad))
        };
        let narrow = tensor(2, &[outputs, inputs], DType::F32)?.to_dtype(DType::BF16)?;
        assert_eq!(result(&narrow)?, result(&narrow.to_dtype(DType::F64)?)?, "{rows} × {inputs} × {outputs}");
        let strided = tensor(2, &[inputs, outputs], DType::F32)?.to_dtype(DType::BF16)?.t()?;
        assert_eq!(result(&strided)?, result(&strided.to_dtype(DType::F64)?)?, "strided");
    }
    Ok(())
}

/// Against the exact product of what candle rounds, within what f32 sums may lose; gradients are of exact values.
#[test]
fn beside_weights_in_bf16_rows_of_f32_are_rounded_and_sums_are_not() -> Result<()> {
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 300, 70), (20, 61, 49), (600, 40, 100), (9, 2050, 97)] {
        let x = Var::from_tensor(&tensor(1, &[rows, inputs], DType::F32)?)?;
        let weight = tensor(2, &[outputs, inputs], DType::F32)?.to_dtype(DType::BF16)?;
        let bias = tensor(3, &[outputs], DType::F32)?;
        let (out, grad) = linear_and_gradient(&x, &weight, &bias)?;
        let wide = |x: &Tensor| x.to_dtype(DType::F64);
        let (rounded, exact) = (wide(&x.to_dtype(DType::BF16)?)?, wide(&weight)?);
        let want = values(&fast::linear_t(&rounded, &exact, Some(&wide(&bias)?))?)?;
        let sizes = values(&fast::linear_t(&rounded.abs()?, &exact.abs()?, Some(&wide(&bias)?.abs()?))?)?;
        for ((got, want), size) in values(&out)?.iter().zip(&want).zip(&sizes) {
            let lost = (inputs + 1) as f64 * 2f64.powi(-24) * size;
            assert!(
                (got - want).abs() <= lost,
                "{rows} × {inputs} × {outputs}: {got}, not {want}, give or take {lost}"
            );
        }
        assert_eq!(grad, linear_and_gradient(&x, &weight.to_dtype(DType::F32)?, &bias)?.1);
    }
    let (x, weight) = (tensor(1, &[2, 3], DType::F32)?, tensor(2, &[4, 3], DType::F32)?.to_dtype(DType::BF16)?);
    let trained = Var::from_tensor(&weight)?;
    let message = fast::linear_t(&x, trained.as_tensor(), None)?.backward().err().map(|e| e.to_string());
    assert!(message.is_some_and(|m| m.contains("gets no gradient")));
    let residual = tensor(3, &[2, 4], DType::F32)?;
    let got = fast::linear_t_residual(&x, &weight, None, &residual)?;
    let rounded = x.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
    let want = fast::linear_t_residual(&rounded, &weight.to_dtype(DType::F32)?, None, &residual)?;
    assert_eq!(bits(&got)?, bits(&want)?);
    Ok(())
}

#[test]
fn a_query_sees_its_own_row_up_to_itself_within_the_window() -> Result<()> {
    let (first, second) = (70, 30);
    let spans = alone(&[first, second]);
    for window in [None, Some(1), Some(13)] {
        let how = Attend { window, ..PLAIN };
        let [q, k, v] = tokens(first + second, first + second, DType::F64)?;
        let before = values(&fast::attend(&q, &k, &v, &spans, &how)?)?;
        for changed in [0, 1, 20, 63, 64, 69, 70, 99] {
            let change = |x: &Tensor| -> Result<Tensor> {
                let mut data = values(x)?;
                data[changed * 48..][..48].iter_mut().for_each(|x| *x += 1.0);
                Tensor::from_vec(data, x.shape(), &Device::Cpu)
            };
            let after = values(&fast::attend(&q, &change(&k)?, &change(&v)?, &spans, &how)?)?;
            for query in 0..first + second {
                let (row, same) = (query * 96..(query + 1) * 96, (query < first) == (changed < first));
                let sees = same && changed <= query && window.is_none_or(|w| query - changed < w);
                assert_eq!(before[row.clone()] != after[row], sees, "query {query}, key {changed}, window {window:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn nan_stays_in_its_row() -> Result<()> {
    let [q, k, v] = tokens(20, 20, DType::F32)?;
    let clean = fast::attend(&q, &k, &v, &alone(&[8, 12]), &PLAIN)?;
    let poison = |x: &Tensor| x.slice_set(&Tensor::full(f32::NAN, (12, 2, 24), &Device::Cpu)?, 0, 8);
    poison(&k)?;
    poison(&v)?;
    let out = fast::attend(&q, &k, &v, &alone(&[8, 12]), &PLAIN)?;
    assert_eq!(bits(&out.narrow(0, 0, 8)?)?, bits(&clean.narrow(0, 0, 8)?)?);
    assert!(values(&out.narrow(0, 8, 12)?)?.iter().all(|x| x.is_nan()));
    Ok(())
}

#[test]
fn angles_may_lie_anywhere_and_what_is_not_a_number_shows() -> Result<()> {
    let (tokens, heads, dim, pairs) = (5, 2, 7, 3);
    let x = Var::from_tensor(&tensor(1, &[tokens, heads, dim], DType::F64)?)?;
    let result = |rotary: &Rotary| {
        let out = fast::rotate(&x, rotary)?;
        let grads = (&out * tensor(99, out.dims(), DType::F64)?)?.sum_all()?.backward()?;
        let grad = grads.get(&x).cloned().ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
        Ok::<_, candle_core::Error>((values(&out.detach())?, values(&grad)?))
    };
    let dense = angles(tokens, pairs, DType::F64)?;
    let strided = |x: &Tensor| x.t()?.contiguous()?.t();
    let want = result(&dense)?;
    assert_eq!(result(&Rotary { cos: strided(&dense.cos)?, sin: strided(&dense.sin)? })?, want);
    for which in [0, 1] {
        let poisoned = |i: usize, x: &Tensor| -> Result<Tensor> {
            let mut data = values(x)?;
            data[pairs + 1] = if i == which { f64::NAN } else { data[pairs + 1] };
            Tensor::from_vec(data, x.shape(), &Device::Cpu)
        };
        let (out, grad) = result(&Rotary { cos: poisoned(0, &dense.cos)?, sin: poisoned(1, &dense.sin)? })?;
        // The second pair of the second token's heads, and nothing else.
        let turned = |at: usize| at / (heads * dim) == 1 && [1, 1 + pairs].contains(&(at % dim));
        for got in [out, grad] {
            assert!(got.iter().enumerate().all(|(at, x)| x.is_nan() == turned(at)), "{got:?}");
        }
    }
    Ok(())
}

#[test]
fn classes_that_are_ruled_out_count_nothing() -> Result<()> {
    let mut data = common::numbers(1, 3 * 40);
    (data[7], data[40], data[119]) = (f64::NEG_INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY);
    let targets = [6, 3, 38];
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F64, 1e-12)] {
        let logits = Var::from_tensor(&Tensor::from_slice(&data, (3, 40), &Device::Cpu)?.to_dtype(dtype)?)?;
        let result = |loss: Tensor| {
            let grads = loss.backward()?;
            let grad = grads.get(&logits).cloned().ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
            Ok::<_, candle_core::Error>((loss.detach(), grad))
        };
        let (loss, grad) = result(fast::cross_entropy(&logits, &targets)?)?;
        let (want, want_grad) = result(reference::cross_entropy(&logits, &targets)?)?;
        assert_close("loss", &loss, &want, tolerance)?;
        assert_close("gradient", &grad, &want_grad, tolerance)?;
    }
    Ok(())
}

#[test]
fn decoding_with_a_cache_gives_what_the_whole_row_gives() -> Result<()> {
    let t = 150;
    for how in [PLAIN, Attend { scale: 0.4, softcap: Some(2.0), window: Some(40) }] {
        let [q, k, v] = tokens(t, t, DType::F32)?;
        let whole = fast::attend(&q, &k, &v, &alone(&[t]), &how)?;
        for (start, new) in [(0, 1), (1, 1), (64, 1), (149, 1), (100, 50), (63, 3)] {
            let keys = start + new;
            for prefix in [0, 1, 30, 64, keys - 1] {
                let prefix = prefix.min(keys);
                // The prefix may lie anywhere: here behind everything else.
                let moved = |x: &Tensor| Tensor::cat(&[x.narrow(0, prefix, t - prefix)?, x.narrow(0, 0, prefix)?], 0);
                let span = Span { queries: 0..new, prefix: t - prefix..t, keys: 0..keys - prefix };
                let part = fast::attend(&q.narrow(0, start, new)?, &moved(&k)?, &moved(&v)?, &[span], &how)?;
                let name = format!("{new} queries from {start}, prefix of {prefix}");
                assert_eq!(bits(&part)?, bits(&whole.narrow(0, start, new)?)?, "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn spans_that_do_not_fit_are_refused_with_the_reason() -> Result<()> {
    let [q, k, v] = tokens(5, 9, DType::F32)?;
    let span = |queries, prefix, keys| Span { queries, prefix, keys };
    let refused = [
        (vec![], "cover 0 of 5 queries"),
        (vec![span(0..3, 0..0, 0..3)], "cover 3 of 5 queries"),
        (vec![span(1..5, 0..0, 0..5)], "span 0 has queries 1..5, where 0.."),
        (vec![span(0..3, 0..0, 0..3), span(2..5, 0..0, 3..6)], "span 1 has queries 2..5, where 3.."),
        (vec![span(0..6, 0..0, 0..6)], "span 0 has queries 0..6"),
        (vec![span(0..5, 0..0, 5..10)], "span 0 has keys 0..0 and 5..10, of 9"),
        (vec![span(0..5, 8..11, 0..5)], "span 0 has keys 8..11 and 0..5, of 9"),
        (vec![span(0..5, 0..2, 2..4)], "span 0 has 4 keys for 5 queries"),
    ];
    for (spans, reason) in refused {
        let message = fast::attend(&q, &k, &v, &spans, &PLAIN).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.starts_with("attend: ") && message.contains(reason), "{spans:?}: {message:?}, not {reason:?}");
    }
    for how in [Attend { window: Some(0), ..PLAIN }, Attend { softcap: Some(0.0), ..PLAIN }] {
        assert!(fast::attend(&q, &k, &v, &alone(&[5]), &how).is_err_and(|e| e.to_string().starts_with("attend: ")));
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_by_name() -> Result<()> {
    let x = |shape: &[usize]| tensor(1, shape, DType::F32);
    let wide = |shape: &[usize]| tensor(1, shape, DType::F64);
    let spans = &alone(&[2]);
    let errors = [
        ("linear_t", fast::linear_t(&x(&[2, 3])?, &x(&[3, 5])?, None)),
        ("linear_t", fast::linear_t(&x(&[2, 3])?, &x(&[5, 3])?, Some(&x(&[3])?))),
        ("linear_t", fast::linear_t(&x(&[2, 3])?, &wide(&[5, 3])?, None)),
        ("linear_t", fast::linear_t(&x(&[2, 3])?, &x(&[5, 3])?, Some(&wide(&[5])?))),
        ("linear_t_residual", fast::linear_t_residual(&x(&[2, 3])?, &x(&[5, 3])?, None, &x(&[1, 5])?)),
        ("rms_norm", fast::rms_norm(&x(&[2, 3])?, &x(&[2])?, 1e-5)),
        ("rotate", fast::rotate(&x(&[2, 3, 4])?, &angles(2, 3, DType::F32)?)),
        ("rotate", fast::rotate(&x(&[2, 3, 4])?, &angles(3, 2, DType::F32)?)),
        ("rotate", fast::rotate(&x(&[2, 3, 4])?, &angles(2, 2, DType::F64)?)),
        ("gated", fast::gated(&x(&[2, 3])?, &x(&[3, 2])?, fast::Activation::Silu)),
        ("gated", fast::gated(&x(&[2, 3])?, &wide(&[2, 3])?, fast::Activation::Silu)),
        ("attend", fast::attend(&x(&[2, 3, 4])?, &x(&[2, 2, 4])?, &x(&[2, 2, 4])?, spans, &PLAIN)),
        ("attend", fast::attend(&x(&[2, 3, 4])?, &x(&[2, 3, 5])?, &x(&[2, 3, 5])?, spans, &PLAIN)),
        ("attend", fast::attend(&x(&[2, 3, 4])?, &x(&[2, 3, 4])?, &x(&[3, 3, 4])?, spans, &PLAIN)),
        ("attend", fast::attend(&x(&[2, 3, 4])?, &x(&[2, 3, 4])?, &wide(&[2, 3, 4])?, spans, &PLAIN)),
        ("cross_entropy", fast::cross_entropy(&x(&[2, 3])?, &[0])),
        ("cross_entropy", fast::cross_entropy(&x(&[2, 3])?, &[0, 3])),
        ("cross_entropy", fast::cross_entropy(&x(&[0, 3])?, &[])),
    ];
    for (i, (name, result)) in errors.into_iter().enumerate() {
        let message = result.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.starts_with(&format!("{name}: ")), "{i}, {name}: {message:?}");
    }
    Ok(())
}
