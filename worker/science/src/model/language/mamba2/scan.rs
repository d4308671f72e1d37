//! The state space recurrence, in chunks (state space duality: Dao and Gu 2024, section 6), as loops on the processor.
//!
//! Each head h of a row keeps a state S (P, S): at every token S ← exp(Δ·a)·S + Δ·x⊗B, and the output is y = S·C + d·x.
//! Within a chunk the outputs are a masked product like attention's, (C·Bᵀ ∘ decays)·x; between chunks goes the state.
//! Decays are products of the tokens' own decays, never quotients or differences of sums, so that nothing is lost where
//! they are small.

use super::real::{Real, add_scaled, dot};
use rayon::prelude::*;
use std::ops::Range;

/// Sizes of one layer's state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// H.
    pub heads: usize,
    /// P, the channels of a head.
    pub head_dim: usize,
    /// S, the length of the state of a channel.
    pub state: usize,
    /// G: B and C are shared by H/G heads.
    pub groups: usize,
}

impl Sizes {
    /// Channels of all heads, H·P.
    pub fn inner(self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of x, B and C together: what the convolution mixes.
    pub fn mixed(self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    /// Which of a token's mixed channels are x of head `h`.
    fn x(self, h: usize) -> Range<usize> {
        h * self.head_dim..(h + 1) * self.head_dim
    }

    /// Which of a token's mixed channels are B of group `g`.
    fn b(self, g: usize) -> Range<usize> {
        let start = self.inner() + g * self.state;
        start..start + self.state
    }

    /// Which of a token's mixed channels are C of group `g`.
    fn c(self, g: usize) -> Range<usize> {
        let start = self.inner() + (self.groups + g) * self.state;
        start..start + self.state
    }

    fn group(self, h: usize) -> usize {
        h * self.groups / self.heads
    }
}

/// What each head has for itself.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a, T> {
    /// a (H), negative: the rate at which the state decays.
    pub rate: &'a [T],
    /// d (H): the part of x that goes past the state.
    pub skip: &'a [T],
}

/// The tokens of all rows.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a, T> {
    /// x (H·P), B (G·S) and C (G·S) of every token, (N, mixed).
    pub mixed: &'a [T],
    /// Δ (N, H).
    pub step: &'a [T],
}

/// Outputs (N, H·P), for `tokens` in `rows` that follow one after the other; `states` (rows, H, P, S) are those before
/// the first token of each row and become those after its last. `chunk` changes the speed, and the result by no more than
/// rounding; neither depends on the number of threads.
pub fn scan<T: Real>(
    sizes: Sizes,
    chunk: usize,
    rows: &[Range<usize>],
    tokens: Tokens<'_, T>,
    heads: Heads<'_, T>,
    states: &mut [T],
) -> Vec<T> {
    let chunks: Vec<Vec<Range<usize>>> = rows.iter().map(|r| cut(r.clone(), chunk)).collect();
    let scores: Vec<Vec<Scores<T>>> =
        chunks.par_iter().map(|c| c.par_iter().map(|c| Scores::of(sizes, c.clone(), tokens)).collect()).collect();
    let outputs: Vec<Vec<T>> = states
        .par_chunks_mut(sizes.head_dim * sizes.state)
        .enumerate()
        .map(|(i, state)| {
            let (row, h) = (i / sizes.heads, i % sizes.heads);
            let mut head = Head { sizes, h, rate: heads.rate[h], skip: heads.skip[h], state };
            scores[row].iter().flat_map(|scores| head.chunk(scores, tokens)).collect()
        })
        .collect();
    gather(sizes, rows, &outputs)
}

/// A row's tokens in chunks; the last may be shorter.
fn cut(row: Range<usize>, chunk: usize) -> Vec<Range<usize>> {
    row.clone().step_by(chunk).map(|start| start..row.end.min(start + chunk)).collect()
}

/// Heads' outputs (T, P) of each row, row by row and head by head, to (N, H·P).
fn gather<T: Real>(sizes: Sizes, rows: &[Range<usize>], outputs: &[Vec<T>]) -> Vec<T> {
    let (inner, p) = (sizes.inner(), sizes.head_dim);
    let tokens = rows.iter().map(Range::len).sum::<usize>();
    let mut y = vec![T::zero(); tokens * inner];
    let mut rest = y.as_mut_slice();
    for (row, heads) in rows.iter().zip(outputs.chunks(sizes.heads)) {
        let (here, later) = rest.split_at_mut(row.len() * inner);
        rest = later;
        here.par_chunks_mut(inner).enumerate().for_each(|(t, y)| {
            for (y, head) in y.chunks_mut(p).zip(heads) {
                y.copy_from_slice(&head[t * p..(t + 1) * p]);
            }
        });
    }
    y
}

/// A chunk's C·Bᵀ, which the heads of a group share.
struct Scores<T> {
    tokens: Range<usize>,
    /// (G, L, L); only s ≤ t is filled in.
    products: Vec<T>,
}

impl<T: Real> Scores<T> {
    fn of(sizes: Sizes, chunk: Range<usize>, tokens: Tokens<'_, T>) -> Self {
        let (len, width) = (chunk.len(), sizes.mixed());
        let token = |i: usize| &tokens.mixed[(chunk.start + i) * width..][..width];
        let mut products = vec![T::zero(); sizes.groups * len * len];
        for (g, products) in products.chunks_mut(len * len).enumerate() {
            for (t, row) in products.chunks_mut(len).enumerate() {
                let c = &token(t)[sizes.c(g)];
                for (s, product) in row[..=t].iter_mut().enumerate() {
                    *product = dot(c, &token(s)[sizes.b(g)]);
                }
            }
        }
        Self { tokens: chunk, products }
    }

    /// The products of token `t` of the chunk with itself and those before it.
    fn row(&self, group: usize, t: usize) -> &[T] {
        let len = self.tokens.len();
        &self.products[(group * len + t) * len..][..=t]
    }
}

/// One head of one row.
struct Head<'a, T> {
    sizes: Sizes,
    h: usize,
    rate: T,
    skip: T,
    /// (P, S).
    state: &'a mut [T],
}

impl<T: Real> Head<'_, T> {
    /// Outputs (L, P) of a chunk; the state is carried to its end.
    fn chunk(&mut self, scores: &Scores<T>, tokens: Tokens<'_, T>) -> Vec<T> {
        let (p, group, width) = (self.sizes.head_dim, self.sizes.group(self.h), self.sizes.mixed());
        let token = |i: usize| &tokens.mixed[(scores.tokens.start + i) * width..][..width];
        let x = self.sizes.x(self.h);
        let mut y = vec![T::zero(); scores.tokens.len() * p];
        // Of each token so far: Δ times its decay up to now. Of the state at the start: its decay up to now.
        let (mut weights, mut carried) = (vec![T::zero(); scores.tokens.len()], T::one());
        for (t, y) in y.chunks_mut(p).enumerate() {
            let step = tokens.step[(scores.tokens.start + t) * self.sizes.heads + self.h];
            let decay = (step * self.rate).exponential();
            for weight in &mut weights[..t] {
                *weight = decayed(*weight, decay);
            }
            weights[t] = step;
            carried = decayed(carried, decay);
            let c = &token(t)[self.sizes.c(group)];
            for (y, state) in y.iter_mut().zip(self.state.chunks(self.sizes.state)) {
                *y = carried * dot(state, c);
            }
            for (s, score) in scores.row(group, t).iter().enumerate() {
                add_scaled(y, weights[s] * *score, &token(s)[x.clone()]);
            }
            add_scaled(y, self.skip, &token(t)[x.clone()]);
        }
        let b = self.sizes.b(group);
        for (channel, state) in x.zip(self.state.chunks_mut(self.sizes.state)) {
            state.iter_mut().for_each(|s| *s = decayed(*s, carried));
            for (s, weight) in weights.iter().enumerate() {
                let token = token(s);
                add_scaled(state, *weight * token[channel], &token[b.clone()]);
            }
        }
        y
    }
}

/// `x·decay`, and zero rather than a number that has become too small to calculate with quickly.
fn decayed<T: Real>(x: T, decay: T) -> T {
    let x = x * decay;
    if x < T::SMALLEST && x > T::zero() - T::SMALLEST { T::zero() } else { x }
}
