//! What forward and backward of [`attend`](crate::attend()) share: blocks of lanes and keys, and scores.

use crate::{
    Attend, Span,
    buffer::Rows,
    dispatch::Isa,
    float::{Float, LANES},
    tile::{Left, Wanted, product},
    transpose::transpose,
};
use std::ops::Range;

/// Lanes of a block, unless a group has more heads.
const MOST_LANES: usize = 64;
/// Keys of a block.
pub const KEYS: usize = 64;

/// What attention reads.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    /// Rows of all heads.
    pub q: Rows<'a, T>,
    /// Rows of all groups.
    pub k: Rows<'a, T>,
    pub v: Rows<'a, T>,
    /// Elements of a head, D.
    pub dim: usize,
    pub how: &'a Attend,
}

impl<T> Inputs<'_, T> {
    pub fn heads(&self) -> usize {
        self.q.width / self.dim
    }

    pub fn groups(&self) -> usize {
        self.k.width / self.dim
    }
}

/// Some queries of a span, each with all heads of a group.
#[derive(Clone, Copy)]
pub struct Lanes<'a> {
    span: &'a Span,
    /// The first query, counted from the span's first.
    first: usize,
    queries: usize,
    pub group: usize,
    /// Heads of a group.
    heads: usize,
}

/// The blocks of a span, all groups of some queries before the next queries.
pub fn blocks(span: &Span, heads: usize, groups: usize) -> impl Iterator<Item = Lanes<'_>> {
    let heads = heads / groups;
    let (all, at_a_time) = (span.queries.len(), (MOST_LANES / heads).max(1));
    (0..all).step_by(at_a_time).flat_map(move |first| {
        let queries = at_a_time.min(all - first);
        (0..groups).map(move |group| Lanes { span, first, queries, group, heads })
    })
}

impl<'a> Lanes<'a> {
    pub fn count(self) -> usize {
        self.queries * self.heads
    }

    /// Rounded up to whole vectors.
    pub fn padded(self) -> usize {
        self.count().next_multiple_of(LANES)
    }

    /// A lane's query, among those of all spans, and its head.
    #[inline(always)]
    pub fn at(self, lane: usize) -> (usize, usize) {
        (self.span.queries.start + self.first + lane / self.heads, self.group * self.heads + lane % self.heads)
    }

    /// The span's keys that the `i`th query of the block sees, from 0.
    fn seen(self, i: usize, window: Option<usize>) -> Range<usize> {
        let end = self.span.visible() - self.span.queries.len() + self.first + i + 1;
        end.saturating_sub(window.unwrap_or(end))..end
    }

    /// The span's keys that any query of the block sees, from 0.
    pub fn wanted(self, window: Option<usize>) -> Range<usize> {
        self.seen(0, window).start..self.seen(self.queries - 1, window).end
    }

    /// The same by blocks, which begin at multiples of `KEYS`: neither what a span shares nor the other queries of a block
    /// change how a query's sums are made.
    pub fn keys(self, window: Option<usize>) -> impl Iterator<Item = Keys<'a>> {
        let wanted = self.wanted(window);
        let first = wanted.start / KEYS * KEYS;
        let block = move |first| Keys { span: self.span, first, count: KEYS.min(wanted.end - first) };
        (first..wanted.end).step_by(KEYS).map(block)
    }
}

/// Some keys of a span.
pub struct Keys<'a> {
    span: &'a Span,
    /// The first, counted from the span's first.
    first: usize,
    pub count: usize,
}

impl Keys<'_> {
    pub fn positions(&self) -> Range<u32> {
        self.first as u32..(self.first + self.count) as u32
    }

    /// Where the `i`th lies among all keys.
    #[inline(always)]
    pub fn row(&self, i: usize) -> usize {
        let (at, Span { prefix, keys, .. }) = (self.first + i, self.span);
        if at < prefix.len() { prefix.start + at } else { keys.start + at - prefix.len() }
    }
}

/// Memory for one block, where `wide` is D rounded up to whole vectors: (lanes, wide) for the queries, (wide, lanes)
/// for them transposed; (keys, wide) for keys and values; (keys, lanes) for scores; (lanes, wide) for the result.
pub struct Scratch<T> {
    dim: usize,
    pub wide: usize,
    pub queries: Vec<T>,
    transposed: Vec<T>,
    pub k: Vec<T>,
    pub v: Vec<T>,
    pub scores: Vec<T>,
    pub out: Vec<T>,
    /// By vectors of lanes: the keys that each sees, the largest score, the sum of exponentials, and by how much what
    /// was computed before shrinks.
    pub seen: Vec<Seen>,
    pub largest: Vec<[T; LANES]>,
    pub sums: Vec<[T; LANES]>,
    pub factors: Vec<[T; LANES]>,
}

/// The first and the last key that each lane of a vector sees.
#[derive(Clone, Copy, Default)]
pub struct Seen {
    first: [u32; LANES],
    last: [u32; LANES],
}

impl Seen {
    #[inline(always)]
    pub fn by(&self, lane: usize, key: u32) -> bool {
        (self.first[lane] <= key) & (key <= self.last[lane])
    }
}

/// One vector of lanes of a matrix (keys, lanes), key by key.
#[inline(always)]
pub fn vectors<T>(matrix: &mut [T], vector: usize, lanes: usize) -> impl Iterator<Item = &mut [T; LANES]> {
    matrix.chunks_exact_mut(lanes).filter_map(move |row| row[vector * LANES..].first_chunk_mut())
}

impl<T: Float> Scratch<T> {
    /// Enough for each of the blocks.
    pub fn new(blocks: &[Lanes<'_>], dim: usize) -> Self {
        let lanes = blocks.iter().map(|block| block.padded()).max().unwrap_or(0);
        let wide = dim.next_multiple_of(LANES);
        let zeros = |len: usize| vec![T::zero(); len];
        Self {
            dim,
            wide,
            queries: zeros(lanes * wide),
            transposed: zeros(wide * lanes),
            k: zeros(KEYS * wide),
            v: zeros(KEYS * wide),
            scores: zeros(KEYS * lanes),
            out: zeros(lanes * wide),
            seen: vec![Seen::default(); lanes / LANES],
            largest: vec![[T::zero(); LANES]; lanes / LANES],
            sums: vec![[T::zero(); LANES]; lanes / LANES],
            factors: vec![[T::zero(); LANES]; lanes / LANES],
        }
    }

    /// Loads a block's queries, scaled, and which keys they see. What stands in lanes that only pad is not used.
    #[inline(always)]
    pub fn begin<I: Isa>(&mut self, inputs: Inputs<'_, T>, block: Lanes<'_>) {
        let scale = T::of(inputs.how.scale);
        for (lane, to) in self.queries.chunks_exact_mut(self.wide).enumerate().take(block.count()) {
            let seen = block.seen(lane / block.heads, inputs.how.window);
            let lanes = &mut self.seen[lane / LANES];
            (lanes.first[lane % LANES], lanes.last[lane % LANES]) = (seen.start as u32, seen.end as u32 - 1);
            let (query, head) = block.at(lane);
            let from = &inputs.q.row(query)[head * inputs.dim..][..inputs.dim];
            for (to, &from) in to.iter_mut().zip(from) {
                *to = from * scale;
            }
        }
        let lanes = block.padded();
        transpose::<T, I>(&mut self.transposed, &self.queries, (lanes, self.wide), (self.wide, lanes));
    }

    #[inline(always)]
    pub fn load_keys(&mut self, inputs: Inputs<'_, T>, block: Lanes<'_>, keys: &Keys<'_>) {
        for (from, to) in [(inputs.k, &mut self.k), (inputs.v, &mut self.v)] {
            for (i, to) in to.chunks_exact_mut(self.wide).enumerate().take(keys.count) {
                let from = &from.row(keys.row(i))[block.group * inputs.dim..][..inputs.dim];
                to[..inputs.dim].copy_from_slice(from);
            }
        }
    }

    /// The scores of the keys that were loaded.
    #[inline(always)]
    pub fn scores<I: Isa>(&mut self, how: &Attend, block: Lanes<'_>, keys: &Keys<'_>) {
        let lanes = block.padded();
        let Self { dim, k, transposed, scores, .. } = self;
        product::<T, I>(scores, Left(k, self.wide, 1), transposed, (lanes, lanes), keys.count, |_| Wanted {
            terms: 0..*dim,
            columns: lanes,
        });
        if let Some(cap) = how.softcap {
            let (cap, inverse) = (T::of(cap), T::of(1.0 / cap));
            for score in &mut scores[..keys.count * lanes] {
                *score = cap * (*score * inverse).hyperbolic_tangent::<I>();
            }
        }
    }
}
