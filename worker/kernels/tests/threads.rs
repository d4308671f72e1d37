//! The same bytes on any number of threads.

mod common;

use candle_core::{DType, Result, Tensor};
use common::{Case, outcome, tensor, vars};
use taskvec_kernels::{Adam, sum_of_squares};

fn on_threads<R: Send>(n: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool").install(work)
}

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// Output and gradients.
fn result(case: &Case) -> Result<Vec<Vec<u32>>> {
    let vars = vars(case, DType::F32)?;
    let (out, grads) = outcome(case, &case.fast, &vars, |v| Ok(v.as_tensor().clone()))?;
    std::iter::once(&out).chain(&grads).map(bits).collect()
}

/// The shapes of the quickstart's model and, with a quarter of its batch, of the paper's.
fn models() -> Vec<Case> {
    let mut cases = common::large();
    // Of a language model with 135 million parameters: a prompt, and decoding.
    for tokens in [70, 8] {
        cases.extend(common::language::linears_t(&[tokens], 576, 1536));
        cases.extend(common::language::gates(&[tokens, 1536]));
    }
    for (batch, t, d, heads) in [(64, 16, 64, 4), (32, 40, 256, 8)] {
        cases.extend([common::layer_norm(&[batch, t], d), common::attention(batch, t, d, heads)]);
        let [_, gelu, _] = common::linears(&[batch, t], d, 4 * d);
        let [_, _, residual] = common::linears(&[batch, t], 4 * d, d);
        let [linear, _, _] = common::linears(&[batch, t], d, 3 * d);
        cases.extend([gelu, residual, linear]);
    }
    cases
}

#[test]
fn outputs_and_gradients_do_not_depend_on_threads() -> Result<()> {
    for case in models() {
        let want = on_threads(1, || result(&case))?;
        for threads in [2, 3] {
            assert!(on_threads(threads, || result(&case))? == want, "{} on {threads} threads", case.name);
        }
    }
    Ok(())
}

/// The product beneath candle's `matmul`, which takes its number of threads from RAYON_NUM_THREADS at every call.
#[test]
fn candles_product_does_not_depend_on_threads() -> Result<()> {
    use gemm::Parallelism;
    for (rows, d) in [(1024, 64), (5120, 256)] {
        let (x, w) = (tensor(1, &[rows, d], DType::F32)?, tensor(2, &[d, 4 * d], DType::F32)?);
        let y = x.matmul(&w)?;
        // x·W, y·Wᵀ and xᵀ·y, with the transposed ones as candle passes them: by strides.
        for (a, b) in [(x.clone(), w.clone()), (y.clone(), w.t()?), (x.t()?, y)] {
            let (m, k, n) = (a.dim(0)?, a.dim(1)?, b.dim(1)?);
            let want = bits(&a.matmul(&b)?)?;
            let (a_data, b_data) = (stored(&a)?, stored(&b)?);
            for parallelism in [Parallelism::None, Parallelism::Rayon(2), Parallelism::Rayon(3)] {
                let mut out = vec![0f32; m * n];
                let strides = [&a, &b].map(|x| [x.stride()[1] as isize, x.stride()[0] as isize]);
                // SAFETY: strides and shapes are those of the tensors, `out` has m·n elements.
                unsafe {
                    let ([a_cs, a_rs], [b_cs, b_rs]) = (strides[0], strides[1]);
                    let (dst, a, b) = (out.as_mut_ptr(), a_data.as_ptr(), b_data.as_ptr());
                    let (cs, rs) = (1, n as isize);
                    gemm::gemm(
                        m,
                        n,
                        k,
                        dst,
                        cs,
                        rs,
                        false,
                        a,
                        a_cs,
                        a_rs,
                        b,
                        b_cs,
                        b_rs,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        parallelism,
                    );
                }
                let got: Vec<u32> = out.into_iter().map(f32::to_bits).collect();
                assert!(got == want, "{m} × {k} × {n}, {parallelism:?}");
            }
        }
    }
    Ok(())
}

/// The elements in the order of memory.
fn stored(x: &Tensor) -> Result<Vec<f32>> {
    if x.is_contiguous() { x.flatten_all()?.to_vec1() } else { x.t()?.flatten_all()?.to_vec1() }
}

#[test]
fn adam_and_the_norm_do_not_depend_on_threads() -> Result<()> {
    let adam = Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let updated = || {
        let [param, grad, m, v] = [1, 2, 3, 4].map(|seed| tensor(seed, &[100_003], DType::F32));
        let (param, grad, m, v) = (param?, grad?, m?, v?.sqr()?);
        adam.update(&param, &grad, &m, &v, 1e-3, 7, 0.5)?;
        Ok((bits(&param)?, bits(&m)?, bits(&v)?, sum_of_squares(&grad)?.to_bits()))
    };
    let want: Result<_> = on_threads(1, updated);
    let want = want?;
    for threads in [2, 3] {
        let got: Result<_> = on_threads(threads, updated);
        assert!(got? == want, "{threads} threads");
    }
    Ok(())
}
