//! The operations of language models as cases.

use super::{Case, case, tensor};
use candle_core::{DType, Result, Tensor};
use taskvec_kernels as fast;
use taskvec_kernels::{Activation, Attend, Rotary, Span, reference};

/// Without and with a bias, with a residual, with both.
pub fn linears_t(lead: &[usize], inputs: usize, outputs: usize) -> Vec<Case> {
    let (x, y) = ([lead, &[inputs]].concat(), [lead, &[outputs]].concat());
    let (weight, bias) = (vec![outputs, inputs], vec![outputs]);
    let name = format!("{x:?} to {outputs}");
    vec![
        case(
            format!("linear_t {name}"),
            vec![x.clone(), weight.clone()],
            |a| fast::linear_t(&a[0], &a[1], None),
            |a| reference::linear_t(&a[0], &a[1], None),
        ),
        case(
            format!("linear_t {name} with bias"),
            vec![x.clone(), weight.clone(), bias.clone()],
            |a| fast::linear_t(&a[0], &a[1], Some(&a[2])),
            |a| reference::linear_t(&a[0], &a[1], Some(&a[2])),
        ),
        case(
            format!("linear_t_residual {name}"),
            vec![x.clone(), weight.clone(), y.clone()],
            |a| fast::linear_t_residual(&a[0], &a[1], None, &a[2]),
            |a| &a[2] + reference::linear_t(&a[0], &a[1], None)?,
        ),
        case(
            format!("linear_t_residual {name} with bias"),
            vec![x, weight, bias, y],
            |a| fast::linear_t_residual(&a[0], &a[1], Some(&a[2]), &a[3]),
            |a| &a[3] + reference::linear_t(&a[0], &a[1], Some(&a[2]))?,
        ),
    ]
}

/// With an `eps` that shows: of one element alone, all of the gradient comes from it.
pub fn rms_norm(lead: &[usize], d: usize) -> Case {
    let x = [lead, &[d]].concat();
    case(
        format!("rms_norm {x:?}"),
        vec![x, vec![d]],
        |a| fast::rms_norm(&a[0], &a[1], 1e-2),
        |a| reference::rms_norm(&a[0], &a[1], 1e-2),
    )
}

pub fn gates(shape: &[usize]) -> [Case; 2] {
    [Activation::Silu, Activation::GeluTanh].map(|activation| {
        case(
            format!("gated {activation:?} {shape:?}"),
            vec![shape.to_vec(), shape.to_vec()],
            move |a| fast::gated(&a[0], &a[1], activation),
            move |a| reference::gated(&a[0], &a[1], activation),
        )
    })
}

/// Any two numbers do for cosine and sine.
pub fn angles(tokens: usize, pairs: usize, dtype: DType) -> Result<Rotary> {
    Ok(Rotary { cos: tensor(50, &[tokens, pairs], dtype)?, sin: tensor(51, &[tokens, pairs], dtype)? })
}

/// The same where `x` is and of its type.
fn angles_of(x: &Tensor, pairs: usize) -> Result<Rotary> {
    let Rotary { cos, sin } = angles(x.dim(0)?, pairs, x.dtype())?;
    Ok(Rotary { cos: cos.to_device(x.device())?, sin: sin.to_device(x.device())? })
}

pub fn rotate(tokens: usize, heads: usize, dim: usize, pairs: usize) -> Case {
    case(
        format!("rotate {tokens} tokens, {heads} heads, {pairs} pairs of {dim}"),
        vec![vec![tokens, heads, dim]],
        move |a| fast::rotate(&a[0], &angles_of(&a[0], pairs)?),
        move |a| reference::rotate(&a[0], &angles_of(&a[0], pairs)?),
    )
}

pub fn cross_entropy(n: usize, classes: usize) -> Case {
    let targets: Vec<u32> = (0..n).map(|i| (i * 7 % classes) as u32).collect();
    let same = targets.clone();
    case(
        format!("cross_entropy {n} × {classes}"),
        vec![vec![n, classes]],
        move |a| fast::cross_entropy(&a[0], &targets),
        move |a| reference::cross_entropy(&a[0], &same),
    )
}

/// (heads, groups, dim), spans, softcap, window. Keys are as many as the spans need.
type Attention<'a> = ((usize, usize, usize), Vec<Span>, Option<f64>, Option<usize>);

pub fn attend(((heads, groups, dim), spans, softcap, window): Attention<'_>) -> Case {
    let how = Attend { scale: 1.5 / (dim as f64).sqrt(), softcap, window };
    let queries = spans.last().map_or(0, |span| span.queries.end);
    let keys = spans.iter().flat_map(|span| [span.prefix.end, span.keys.end]).max().unwrap_or(0);
    let same = spans.clone();
    case(
        format!(
            "attend {queries} queries, {keys} keys, {} spans, heads {:?}, {softcap:?}, {window:?}",
            spans.len(),
            (heads, groups, dim)
        ),
        vec![vec![queries, heads, dim], vec![keys, groups, dim], vec![keys, groups, dim]],
        move |a| fast::attend(&a[0], &a[1], &a[2], &spans, &how),
        move |a| reference::attend(&a[0], &a[1], &a[2], &same, &how),
    )
}

/// Rows of these lengths, each seeing itself only.
pub fn alone(lengths: &[usize]) -> Vec<Span> {
    let mut start = 0;
    lengths
        .iter()
        .map(|length| {
            start += length;
            Span::alone(start - length..start)
        })
        .collect()
}

/// Rows of these lengths behind a prefix that they share, the first keys.
pub fn behind(prefix: usize, lengths: &[usize]) -> Vec<Span> {
    let shift = |span: Span| Span { prefix: 0..prefix, keys: span.keys.start + prefix..span.keys.end + prefix, ..span };
    alone(lengths).into_iter().map(shift).collect()
}

/// One query of each row, after so many keys of its own.
pub fn decoding(keys: &[usize]) -> Vec<Span> {
    alone(keys).into_iter().enumerate().map(|(i, span)| Span { queries: i..i + 1, ..span }).collect()
}

/// The last `new` of each row's tokens as queries, in a cache with room behind each row.
pub fn cached(rows: &[(usize, usize)]) -> Vec<Span> {
    let (mut query, mut key) = (0, 0);
    rows.iter()
        .map(|&(all, new)| {
            (query, key) = (query + new, key + all + 3);
            Span { queries: query - new..query, prefix: 0..0, keys: key - all - 3..key - 3 }
        })
        .collect()
}

pub fn small() -> Vec<Case> {
    let mut cases = vec![cross_entropy(1, 1), cross_entropy(3, 5), cross_entropy(4, 1500)];
    for (lead, d) in [(&[1][..], 1), (&[1], 5), (&[2, 3], 16), (&[3, 2, 2], 37), (&[5, 20], 64)] {
        cases.push(rms_norm(lead, d));
    }
    for shape in [&[1][..], &[7], &[3, 17], &[2, 2, 300]] {
        cases.extend(gates(shape));
    }
    for (lead, inputs, outputs) in [
        (&[1][..], 1, 1),
        (&[1], 7, 3),
        (&[2, 3], 4, 1),
        (&[3, 3], 9, 49),
        (&[17], 16, 48),
        (&[7], 300, 65),
        (&[1], 263, 97),
    ] {
        cases.extend(linears_t(lead, inputs, outputs));
    }
    for (tokens, heads, dim, pairs) in [(1, 1, 2, 1), (3, 2, 6, 2), (5, 3, 32, 16), (20, 1, 7, 3), (2, 2, 5, 0)] {
        cases.push(rotate(tokens, heads, dim, pairs));
    }
    let attentions: Vec<Attention<'_>> = vec![
        ((1, 1, 1), alone(&[1]), None, None),
        ((2, 1, 3), alone(&[2, 1]), None, None),
        ((6, 2, 5), alone(&[5, 0, 9]), None, None),
        ((3, 1, 16), alone(&[30, 7]), Some(0.7), None),
        ((4, 4, 8), alone(&[70]), None, Some(9)),
        ((2, 2, 20), alone(&[3, 40]), Some(2.0), Some(2)),
        ((6, 3, 8), behind(5, &[4, 1, 3]), None, None),
        ((2, 1, 8), behind(66, &[3, 2]), Some(1.0), Some(68)),
        ((4, 2, 8), decoding(&[4, 1, 70]), None, None),
        ((2, 1, 4), cached(&[(9, 2), (4, 4), (80, 3)]), None, Some(20)),
        ((70, 1, 2), alone(&[3]), None, None),
    ];
    cases.extend(attentions.into_iter().map(attend));
    cases
}

/// Larger than one piece of work.
pub fn large() -> Vec<Case> {
    let mut cases = vec![rms_norm(&[700], 72), cross_entropy(40, 3000), rotate(700, 3, 40, 20)];
    cases.extend(gates(&[300, 200]));
    for (lead, inputs, outputs) in [(&[1100][..], 40, 136), (&[3, 130], 300, 20), (&[8], 576, 400), (&[2], 40, 1000)] {
        cases.extend(linears_t(lead, inputs, outputs));
    }
    let attentions: Vec<Attention<'_>> = vec![
        ((9, 3, 64), alone(&[100, 61, 130, 20]), None, None),
        ((4, 2, 256), alone(&[150, 90]), Some(50.0), Some(64)),
        ((6, 2, 32), behind(130, &[20, 50, 1, 33]), None, None),
        ((6, 2, 48), decoding(&[300, 12, 411, 64]), None, None),
    ];
    cases.extend(attentions.into_iter().map(attend));
    cases
}
