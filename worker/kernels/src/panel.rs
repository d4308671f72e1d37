//! Products with a weight in f32 on x86-64, for any number of rows.
//!
//! A panel of the weight, 48 columns of it, is laid out anew (and widened from bf16) for the innermost loop, used for
//! all rows at hand, and forgotten: for many rows the laying out is lost in the work, for few it hides behind the
//! memory. Each element of the result is a sum over blocks of a fixed depth, in order, so that it does not depend on which rows
//! and columns are computed together, nor on the kind of vectors.

pub mod amx;
pub mod gated;
mod tiles;

use crate::{
    float::LANES,
    transpose::{self, Element, InMemory, SIDE},
    weight::{Block, COLUMNS, Elements, Order, Weight},
};
use std::{arch::x86_64::*, cell::Cell, ops::Range};
use tiles::{Kernels, Tile, kernels};

/// Columns of a panel: three vectors, so that with `TALL` rows the sums take 24 of AVX-512's 32 registers.
const WIDE: usize = COLUMNS;
/// Rows of a tile of vectors.
const TALL: usize = 8;
/// Sums of the largest tile.
type Sums = [[f32; WIDE]; 2 * amx::ROWS];
/// Terms of one sum, at most: 48 KiB of a panel, in the second-level cache. Fewer would leave more sums to add up.
const DEPTH: usize = 256;
/// Sums of an element that are added up before it is written: with a panel of 288 KiB and the rows at hand, half of a
/// second-level cache.
const SPAN: usize = 6;

/// A vector's worth of memory, where vectors like to begin.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _elements: [f32; LANES],
}

thread_local! {
    /// Where a thread lays out its panels, one after the other.
    static PANEL: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Computes a block of a product; false where the machine lacks the instructions.
pub fn product(block: &Block<'_, f32>) -> bool {
    let Some(sums) = Summing::of(&block.weight) else { return false };
    let Summing { kernels, deep, long } = sums;
    let depth = block.weight.depth;
    // Few rows do not pay for a panel that has left the first-level cache when they come.
    let long = if block.rows.len() > TALL { long } else { deep };
    let lines = sums.lines(long.min(depth));
    let panels = kernels.panels(lines * size_of::<Line>()).min(block.columns.len().div_ceil(WIDE));
    // Taken: while this thread waits for another it may begin another product.
    let mut room = room(PANEL.take(), panels * lines);
    for start in (0..depth).step_by(long) {
        let terms = start..depth.min(start + long);
        for first in block.columns.clone().step_by(panels * WIDE) {
            let columns = first..block.columns.end.min(first + panels * WIDE);
            let panels = lay_out_all(&block.weight, kernels, terms.clone(), columns, room.chunks_exact_mut(lines));
            Part { block, kernels, terms: terms.clone(), deep, panels: &panels }.multiply_rows(block.rows.clone());
        }
    }
    PANEL.set(room);
    true
}

/// Computes blocks of the same product one after the other, laying out its weight once; `then` is told when one is done. False where
/// the machine lacks the instructions or the weight is too large.
pub fn products<'a>(
    blocks: impl Iterator<Item = Block<'a, f32>>,
    weight: &Weight<'a, f32>,
    mut then: impl FnMut(Range<usize>),
) -> bool {
    /// What a thread keeps for it, at most.
    const BYTES: usize = 4 << 20;
    let Some(sums) = Summing::of(weight) else { return false };
    let Summing { kernels, deep, long } = sums;
    let lines = sums.lines(weight.depth);
    let count = weight.columns.div_ceil(WIDE);
    if weight.depth > long || count * lines * size_of::<Line>() > BYTES {
        return false;
    }
    let mut room = room(PANEL.take(), count * lines);
    let panels = lay_out_all(weight, kernels, 0..weight.depth, 0..weight.columns, room.chunks_exact_mut(lines));
    for block in blocks {
        for panels in panels.chunks(kernels.panels(lines * size_of::<Line>())) {
            let part = Part { block: &block, kernels, terms: 0..weight.depth, deep, panels };
            part.multiply_rows(block.rows.clone());
        }
        then(block.rows);
    }
    drop(panels);
    PANEL.set(room);
    true
}

/// Memory for so many lines.
fn room(mut kept: Vec<Line>, lines: usize) -> Vec<Line> {
    if kept.len() < lines {
        kept.resize(lines, Line { _elements: [0.0; LANES] });
    }
    kept
}

/// How the sums of a product are made.
#[derive(Clone, Copy)]
struct Summing {
    kernels: Kernels,
    /// Terms of one sum, and of those that are added up before they are written.
    deep: usize,
    long: usize,
}

impl Summing {
    fn of(weight: &Weight<'_, f32>) -> Option<Self> {
        let kernels = kernels(weight.elements)?;
        let (deep, span) = match (kernels, weight.elements) {
            // They sum up a few terms at a time anyway.
            (Kernels::Amx, _) => (SPAN * DEPTH, 1),
            // The sums that they have in pairs.
            (_, Elements::Brain(_) | Elements::Widened(_)) => (2 * deep(weight.depth.div_ceil(2)), SPAN / 2),
            _ => (deep(weight.depth), SPAN),
        };
        Some(Self { kernels, deep, long: span * deep })
    }

    /// Lines of a panel of so many terms.
    fn lines(&self, terms: usize) -> usize {
        terms.next_multiple_of(self.kernels.whole()) * WIDE / LANES
    }
}

/// Terms of one sum, where there are `depth` in all: as equal as can be.
fn deep(depth: usize) -> usize {
    depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(LANES / 2)
}

/// Some columns of the weight, laid out.
struct Panel<'a> {
    lines: &'a [Line],
    columns: Range<usize>,
}

/// The product of a block's rows with some panels.
struct Part<'a> {
    block: &'a Block<'a, f32>,
    kernels: Kernels,
    terms: Range<usize>,
    /// Terms in one sum.
    deep: usize,
    panels: &'a [Panel<'a>],
}

impl Part<'_> {
    /// Adds it to the result, for some rows, of which another thread may take a half.
    fn multiply_rows(&self, rows: Range<usize>) {
        /// Fewer are done before another thread would have begun.
        const HALF: usize = 256;
        if self.block.helped && rows.len() >= 2 * HALF {
            let middle = rows.start + (rows.len() / 2).next_multiple_of(TALL);
            rayon::join(|| self.multiply_rows(rows.start..middle), || self.multiply_rows(middle..rows.end));
        } else {
            // SAFETY: the machine has AVX2, as it has kernels.
            unsafe { self.multiply(rows) }
        }
    }

    #[target_feature(enable = "avx2")]
    fn multiply(&self, rows: Range<usize>) {
        // Sums are added up in the first-level cache: the result is far away.
        let mut sums: Sums = [[0.0; WIDE]; 2 * amx::ROWS];
        let tiles = || {
            let mut first = rows.start;
            while first < rows.end {
                let end = first + self.kernels.tall(rows.end - first);
                self.panels.iter().for_each(|panel| self.tile(first..end, panel, &mut sums));
                first = end;
            }
        };
        // SAFETY: a tile computes nothing but itself.
        unsafe { self.kernels.with(tiles) }
    }

    /// As many rows as a tile has; `sums` are used where the result is not written at once.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn tile(&self, rows: Range<usize>, Panel { lines, columns }: &Panel<'_>, sums: &mut Sums) {
        let Self { block, kernels, terms, deep, .. } = self;
        let whole = terms.len().next_multiple_of(kernels.whole());
        assert!(whole * WIDE <= lines.len() * LANES && terms.end <= block.weight.depth);
        let (begins, ends) = (terms.start == 0, terms.end == block.weight.depth);
        let shape = [rows.len(), columns.len().div_ceil(LANES)];
        let x = block.x.part([rows.start, terms.start], [rows.len(), whole]).as_ptr();
        let panel = lines.as_ptr().cast::<f32>();
        let strides = |to: usize| [block.x.1, block.x.2, to];
        if begins && terms.len() <= *deep && columns.len().is_multiple_of(LANES) && block.adds_nothing() {
            let (out, distance) = block.place(rows, columns.clone());
            let tile = Tile { x, panel, depth: terms.len(), out, strides: strides(distance), add: false };
            // SAFETY: `x` holds as many rows as the kernel reads, each up to the last of the terms; so does the panel; the place
            // is as large as the kernel's tile.
            unsafe { kernels.run(shape, tile) };
            return;
        }
        fetch(block.place(rows.clone(), columns.clone()), rows.len());
        if !begins {
            rows.clone().zip(&mut *sums).for_each(|(row, sums)| block.get(row, columns.clone(), sums));
        }
        for from in (0..terms.len()).step_by(*deep) {
            let (depth, add) = ((*deep).min(terms.len() - from), from > 0 || !begins);
            // SAFETY: as above, with a place that no tile is larger than; the first terms wrote it where it is added to.
            unsafe {
                let (x, panel) = (x.add(from * block.x.2), panel.add(from * WIDE));
                kernels
                    .run(shape, Tile { x, panel, depth, out: sums.as_mut_ptr().cast(), strides: strides(WIDE), add });
            }
            if !add {
                sums.iter_mut().take(rows.len()).for_each(|sums| block.add_bias(columns.clone(), sums));
            }
        }
        if ends {
            rows.clone().zip(&mut *sums).for_each(|(row, sums)| block.add_residual(row, columns.clone(), sums));
        }
        rows.zip(sums).for_each(|(row, sums)| block.put(row, columns.clone(), sums));
    }
}

/// Asks for some rows of the result, a panel wide, while the sums are made that will be written there.
#[target_feature(enable = "avx2")]
fn fetch((out, distance): (*mut f32, usize), rows: usize) {
    for row in 0..rows {
        for v in 0..WIDE / LANES {
            // A hint, whatever the address.
            _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(row * distance + v * LANES).cast());
        }
    }
}

/// Lays out panels of some columns, in as much room for each.
fn lay_out_all<'a>(
    weight: &Weight<'_, f32>,
    kernels: Kernels,
    terms: Range<usize>,
    columns: Range<usize>,
    room: impl Iterator<Item = &'a mut [Line]>,
) -> Vec<Panel<'a>> {
    let panels = columns.clone().step_by(WIDE).zip(room).map(|(first, lines)| {
        let columns = first..columns.end.min(first + WIDE);
        // SAFETY: the machine has AVX2, as it has kernels.
        unsafe { lay_out_panel(weight, kernels, terms.clone(), columns.clone(), lines) };
        Panel { lines, columns }
    });
    panels.collect()
}

/// Lays out a panel, with zeros behind terms that are no whole block.
#[target_feature(enable = "avx2")]
fn lay_out_panel(
    weight: &Weight<'_, f32>,
    kernels: Kernels,
    terms: Range<usize>,
    columns: Range<usize>,
    panel: &mut [Line],
) {
    let (end, whole) = (terms.len(), terms.len().next_multiple_of(kernels.whole()));
    panel[end * WIDE / LANES..whole * WIDE / LANES].fill(Line { _elements: [0.0; LANES] });
    match (weight.elements, kernels) {
        (Elements::Same(elements) | Elements::Widened(elements) | Elements::PairBits(elements), _) => {
            lay_out(elements, weight, terms, columns, panel);
        }
        (Elements::Brain(elements), _) => lay_out(elements, weight, terms, columns, panel),
        (Elements::Pairs(elements), Kernels::Vectors(_)) => lay_out(elements, weight, terms, columns, panel),
        (Elements::Pairs(elements), Kernels::Amx) => lay_out(InMemory::of(elements), weight, terms, columns, panel),
    }
}

/// Lays out the weights of some terms and columns as rows of `WIDE`. Columns that are missing are left as they are, and
/// what is computed from them is not used.
#[target_feature(enable = "avx2")]
fn lay_out<E: Element>(
    elements: &[E],
    weight: &Weight<'_, f32>,
    terms: Range<usize>,
    columns: Range<usize>,
    panel: &mut [Line],
) {
    // SAFETY: a line is an array of its elements.
    let panel = unsafe { std::slice::from_raw_parts_mut(panel.as_mut_ptr().cast::<f32>(), panel.len() * LANES) };
    match weight.order {
        Order::ByTerm => {
            for (term, panel) in terms.zip(panel.chunks_exact_mut(WIDE)) {
                let weights = &elements[term * weight.columns..][columns.clone()];
                // A known length makes this a few vectors instead of a call.
                match <&[E; WIDE]>::try_from(weights) {
                    Ok(weights) => (0..WIDE).for_each(|i| panel[i] = weights[i].widened()),
                    Err(_) => panel.iter_mut().zip(weights).for_each(|(to, from)| *to = from.widened()),
                }
            }
        }
        Order::ByColumn => {
            for (i, first) in columns.clone().step_by(SIDE).enumerate() {
                let rows = elements[first * weight.depth..columns.end.min(first + SIDE) * weight.depth]
                    .chunks_exact(weight.depth)
                    .map(|row| &row[terms.clone()]);
                lay_out_columns(rows, weight.depth, &mut panel[i * SIDE..]);
            }
        }
    }
}

/// Up to `SIDE` columns of a panel from as many rows, which lie at a distance.
#[inline(always)]
fn lay_out_columns<'a, E: Element + 'a>(
    rows: impl ExactSizeIterator<Item = &'a [E]>,
    distance: usize,
    panel: &mut [f32],
) {
    let mut columns: [&[E]; SIDE] = [&[]; SIDE];
    let count = rows.len();
    columns.iter_mut().zip(rows).for_each(|(column, row)| *column = row);
    let terms = columns[0].len();
    let whole = if count == SIDE { terms / SIDE * SIDE } else { 0 };
    for term in (0..whole).step_by(SIDE) {
        let to = &mut panel[term * WIDE..][..(SIDE - 1) * WIDE + SIDE];
        let from = columns.map(|column| column[term..term + SIDE].as_ptr());
        if term % LANES == 0 {
            // The columns after these, likely the next to be laid out, come from memory when there are few rows.
            for from in from {
                // SAFETY: a hint, whatever the address; SSE is part of the target.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(SIDE * distance).cast()) };
            }
        }
        // SAFETY: each column has eight elements from `term`, and `to` has eight rows of eight, `WIDE` apart. Only
        // called with AVX2.
        unsafe { transpose::avx2(from, to.as_mut_ptr(), WIDE) };
    }
    for (i, column) in columns.iter().enumerate().take(count) {
        for (term, value) in column.iter().enumerate().skip(whole) {
            panel[term * WIDE + i] = value.widened();
        }
    }
}
