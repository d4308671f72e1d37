//! Launches of causal attention with grouped queries.

use super::{Bytes, Call, call::WARP};
use crate::{
    Attend, Span,
    attend::{check_how, check_spans},
    attend_block::blocks,
};
use candle_core::Result;
use std::ops::Range;

/// Keys at a time (`ATTEND_KEYS` of the source), and how far rows of their scores lie apart.
const KEYS: usize = 64;
const PITCH: usize = KEYS | 1;
/// Lanes that a block of threads takes at most.
const LANES: usize = 64;
/// Words of the source's `GroupedBlock`, `GroupedPiece` and `GroupedEntry`.
const BLOCK: usize = 6;
const PIECE: usize = 4;
const ENTRY: usize = 2;

/// Queries (N, H, D), keys and values (M, G, D), where G divides H and head h reads group h·G/H.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grouped {
    /// N.
    pub queries: usize,
    /// M.
    pub keys: usize,
    /// H.
    pub heads: usize,
    /// G.
    pub groups: usize,
    /// Elements of a head, D.
    pub dim: usize,
    /// From token to token, of queries, keys and values: they may be parts of wider rows.
    pub strides: [usize; 3],
    pub how: Attend,
    /// Bytes of shared memory that a block may have: 166 912 on sm_80, 232 448 on sm_90.
    pub shared: usize,
}

impl Grouped {
    /// Of a head's rows in shared memory.
    fn pitch(self) -> usize {
        self.dim | 1
    }

    /// Bytes of shared memory for so many floats and, of `most` at the most, as many `each` as there is room for.
    fn room(self, what: &str, fixed: usize, each: usize, most: usize) -> Result<(usize, usize)> {
        let bytes = |count: usize| (fixed + count * each) * size_of::<f32>();
        match (1..=most).rev().find(|&count| bytes(count) <= self.shared) {
            Some(count) => Ok((count, bytes(count))),
            None => candle_core::bail!(
                "attend: one of the {what} with heads of {} needs {} bytes of a block's shared memory, of {}",
                self.dim,
                bytes(1),
                self.shared
            ),
        }
    }
}

/// How the work is spread over blocks of threads, for rows of certain lengths. [`Plan::blocks`], [`Plan::pieces`] and
/// [`Plan::entries`] are for the device, as buffers of u32.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    of: Grouped,
    blocks: Vec<u32>,
    pieces: Vec<u32>,
    entries: Vec<u32>,
    /// Lanes of the largest block of queries.
    most: usize,
    /// Lanes, or keys, that a block of threads takes, and the shared memory that it needs.
    forward: (usize, usize),
    by_queries: (usize, usize),
    by_keys: (usize, usize),
}

/// Some queries of one row.
struct Queries {
    first: usize,
    count: usize,
    /// Keys that the first one sees without a window.
    ends: usize,
    span: Span,
}

impl Plan {
    /// For these rows.
    ///
    /// # Errors
    /// No query at all; spans that do not cover the queries in order, reach beyond the keys or have fewer keys than
    /// queries; a window of no keys or a cap that is not positive; heads that do not fit the shared memory.
    pub fn new(of: Grouped, spans: &[Span]) -> Result<Self> {
        check_spans(spans, of.queries, of.keys)?;
        check_how(&of.how)?;
        let [q, k, v] = of.strides;
        if of.queries == 0 || of.groups == 0 || !of.heads.is_multiple_of(of.groups) || of.dim == 0 {
            candle_core::bail!("attend: there is nothing to do for {of:?}");
        }
        if q < of.heads * of.dim || k.min(v) < of.groups * of.dim {
            candle_core::bail!("attend: tokens overlap at distances of {:?} in {of:?}", of.strides);
        }
        let queries: Vec<Queries> = spans.iter().flat_map(|span| cut(span, of)).collect();
        let heads = of.heads / of.groups;
        let most = queries.iter().map(|block| block.count * heads).max().unwrap_or(heads);
        let (pitch, tile) = (of.pitch(), KEYS * of.pitch());
        let lanes = most.min(LANES);
        let forward = of.room("queries", tile, 2 * pitch + PITCH + 2, lanes)?;
        let by_queries = of.room("queries", tile, 3 * pitch + 2 * PITCH + 3, lanes)?;
        // Rows of scores are as wide as there are keys, and odd: one more at the most.
        let by_keys = of.room("keys", most * (pitch + 3 + 2), 2 * (pitch + most), KEYS)?;
        let (pieces, entries) = pieces(of, spans, &queries, by_keys.0);
        let blocks = queries.iter().flat_map(Queries::words).collect();
        Ok(Self { of, blocks, pieces, entries, most, forward, by_queries, by_keys })
    }

    /// The blocks of queries.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The pieces of keys, for the backward.
    pub fn pieces(&self) -> &[u32] {
        &self.pieces
    }

    /// Which blocks of queries see each piece of keys, for the backward.
    pub fn entries(&self) -> &[u32] {
        &self.entries
    }

    fn len(&self) -> usize {
        self.of.queries * self.of.heads * self.of.dim
    }

    fn len_of_keys(&self) -> usize {
        self.of.keys * self.of.groups * self.of.dim
    }

    /// `count` blocks of threads for each group, with what every kernel that reads q, k and v is given first.
    fn call<B: Bytes>(&self, kernel: &'static str, count: usize, lanes: usize, [q, k, v]: [B; 3]) -> Call<B> {
        let Grouped { heads, groups, dim, how, strides, .. } = self.of;
        let reach =
            |tokens: usize, stride: usize, width: usize| (tokens.max(1) - 1) * stride + width.min(tokens * width);
        let key_width = groups * dim;
        Call::new(kernel, [count, groups, 1])
            .floats(q, reach(self.of.queries, strides[0], heads * dim))
            .floats(k, reach(self.of.keys, strides[1], key_width))
            .floats(v, reach(self.of.keys, strides[2], key_width))
            .bytes(&self.shape(&how, lanes))
    }

    /// The source's `Grouped`.
    fn shape(&self, how: &Attend, lanes: usize) -> Vec<u8> {
        let int = |value: usize| i32::try_from(value).expect("sizes fit 31 bits").to_le_bytes();
        let window = how.window.unwrap_or(i32::MAX as usize).min(i32::MAX as usize);
        let strides = self.of.strides.iter().flat_map(|&stride| (stride as u64).to_le_bytes());
        let sizes = [self.of.heads, self.of.groups, self.of.dim, window].into_iter().flat_map(int);
        let [cap, inverse] = how.softcap.map_or([0.0; 2], |cap| [cap as f32, (1.0 / cap) as f32]);
        let factors = [how.scale as f32, cap, inverse].into_iter().flat_map(f32::to_le_bytes);
        strides.chain(sizes).chain(factors).chain(int(lanes)).collect()
    }

    /// A launch of blocks that take so many lanes each.
    fn by_lanes<B: Bytes>(
        &self,
        kernel: &'static str,
        (lanes, shared): (usize, usize),
        inputs: [B; 3],
        blocks: B,
    ) -> Call<B> {
        let splits = self.most.div_ceil(lanes);
        self.call(kernel, self.blocks.len() / BLOCK * splits, lanes, inputs)
            .shared(shared)
            .buffer::<u32>(blocks, self.blocks.len())
            .int(splits)
    }

    /// `q`, `k` and `v` to `out` (N, H, D), and to `kept` (N, H, 2) what the backward needs. `blocks` holds
    /// [`Plan::blocks`] and is trusted.
    pub fn forward<B: Bytes>(&self, inputs: [B; 3], blocks: B, out: B, kept: Option<B>) -> Call<B> {
        self.by_lanes("attend_forward", self.forward, inputs, blocks)
            .floats(out, self.len())
            .maybe_floats(kept, 2 * self.of.queries * self.of.heads)
    }

    /// What both backwards need, to `means` (N, H), from the output and the gradient by it.
    pub fn means<B: Bytes>(&self, [grad, out, means]: [B; 3]) -> Call<B> {
        let rows = self.of.queries * self.of.heads;
        Call::each("attend_means", rows * WARP / 2, 1)
            .floats(grad, self.len())
            .floats(out, self.len())
            .int(rows)
            .int(self.of.dim)
            .floats(means, rows)
    }

    /// The gradient by the queries, `dq` (N, H, D).
    pub fn backward_queries<B: Bytes>(&self, inputs: [B; 3], blocks: B, [grad, means, kept, dq]: [B; 4]) -> Call<B> {
        let call = self.by_lanes("attend_backward_queries", self.by_queries, inputs, blocks);
        self.given(call, [grad, means, kept]).floats(dq, self.len())
    }

    /// The gradients by keys and values, (M, G, D), where wanted. `tables` hold [`Plan::blocks`], [`Plan::pieces`] and
    /// [`Plan::entries`] and are trusted.
    pub fn backward_keys<B: Bytes>(
        &self,
        inputs: [B; 3],
        [blocks, pieces, entries]: [B; 3],
        given: [B; 3],
        [dk, dv]: [Option<B>; 2],
    ) -> Call<B> {
        let (keys, shared) = self.by_keys;
        let call = self
            .call("attend_backward_keys", self.pieces.len() / PIECE, self.most, inputs)
            .shared(shared)
            .buffer::<u32>(blocks, self.blocks.len())
            .buffer::<u32>(pieces, self.pieces.len())
            .buffer::<u32>(entries, self.entries.len())
            .int(keys);
        self.given(call, given).maybe_floats(dk, self.len_of_keys()).maybe_floats(dv, self.len_of_keys())
    }

    fn given<B: Bytes>(&self, call: Call<B>, [grad, means, kept]: [B; 3]) -> Call<B> {
        let rows = self.of.queries * self.of.heads;
        call.floats(grad, self.len()).floats(means, rows).floats(kept, 2 * rows)
    }
}

/// The blocks of a row, as those of the CPU.
fn cut(span: &Span, of: Grouped) -> impl Iterator<Item = Queries> {
    blocks(span, of.heads, of.groups).filter(|block| block.group == 0).map(move |block| {
        let count = block.count() / (of.heads / of.groups);
        let ends = block.wanted(None).end - (count - 1);
        Queries { first: block.at(0).0, count, ends, span: span.clone() }
    })
}

impl Queries {
    /// The source's `GroupedBlock`.
    fn words(&self) -> [u32; BLOCK] {
        let Self { first, count, ends, span } = self;
        [*first, *count, *ends, span.prefix.start, span.prefix.len(), span.keys.start].map(word)
    }

    /// Which of the row's keys they see, from 0.
    fn wanted(&self, window: Option<usize>) -> Range<usize> {
        self.ends.saturating_sub(window.unwrap_or(self.ends))..self.ends + self.count - 1
    }

    /// Which of the row's keys the first of `piece` is, where the piece is one of the row's and any is seen.
    fn positions(&self, piece: &Range<usize>, window: Option<usize>) -> impl Iterator<Item = usize> {
        let (wanted, within) = (self.wanted(window), piece.clone());
        let parts = [(0, self.span.prefix.clone()), (self.span.prefix.len(), self.span.keys.clone())];
        let position = move |(before, rows): (usize, Range<usize>)| {
            let part_of = rows.start <= within.start && within.end <= rows.end;
            let position = (before + within.start).checked_sub(rows.start).filter(|_| part_of)?;
            (position < wanted.end && wanted.start < position + within.len()).then_some(position)
        };
        parts.into_iter().filter_map(position)
    }
}

fn word(value: usize) -> u32 {
    u32::try_from(value).ok().filter(|&word| word <= i32::MAX as u32).expect("sizes fit 31 bits")
}

/// All keys in pieces of at most `keys`, none of which is only partly of any row, and the blocks of queries that see each,
/// in order.
fn pieces(of: Grouped, spans: &[Span], queries: &[Queries], keys: usize) -> (Vec<u32>, Vec<u32>) {
    let ranges = spans.iter().flat_map(|span| [&span.prefix, &span.keys]).filter(|range| !range.is_empty());
    let mut cuts: Vec<usize> = ranges.flat_map(|range| [range.start, range.end]).chain([0, of.keys]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let (mut pieces, mut entries) = (Vec::new(), Vec::new());
    for pair in cuts.windows(2) {
        for row in (pair[0]..pair[1]).step_by(keys) {
            let piece = row..pair[1].min(row + keys);
            let first = entries.len() / ENTRY;
            for (index, block) in queries.iter().enumerate() {
                entries.extend(block.positions(&piece, of.how.window).flat_map(|position| [index, position].map(word)));
            }
            pieces.extend([piece.start, piece.len(), first, entries.len() / ENTRY - first].map(word));
        }
    }
    (pieces, entries)
}
