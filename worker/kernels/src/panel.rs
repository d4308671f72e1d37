//! Products with a weight in f32 on x86-64, for any number of rows.
//!
//! A panel of the weight, 48 columns of it, is laid out anew (and widened from bf16) for the innermost loop, used for
//! all rows at hand, and forgotten: for many rows the laying out is lost in the work, for few it hides behind the
//! memory. Each element of the result is a sum over blocks of a fixed depth, in order, so that it does not depend on which rows
//! and columns are computed together, nor on the kind of vectors.

mod tiles;

use crate::{
    float::LANES,
    transpose::{self, Element, SIDE},
    weight::{Block, COLUMNS, Elements, Order},
};
use std::{arch::x86_64::*, cell::Cell, ops::Range};
use tiles::{Kernels, Sums, kernels};

/// Columns of a panel: three vectors, so that with `TALL` rows the sums take 24 of AVX-512's 32 registers.
const WIDE: usize = COLUMNS;
/// Rows of a tile.
const TALL: usize = 8;
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
    let Some(kernels) = kernels(block.weight.elements) else { return false };
    let depth = block.weight.depth;
    let (deep, span) = match block.weight.elements {
        // The sums that they have in pairs.
        Elements::Brain(_) | Elements::Widened(_) => (2 * deep(depth.div_ceil(2)), SPAN / 2),
        _ => (deep(depth), SPAN),
    };
    // Few rows do not pay for a panel that has left the first-level cache when they come.
    let long = if block.rows.len() > TALL { span * deep } else { deep };
    // Taken: while this thread waits for another it may begin another product.
    let mut panel = PANEL.take();
    let lines = long.min(depth) * WIDE / LANES;
    if panel.len() < lines {
        panel.resize(lines, Line { _elements: [0.0; LANES] });
    }
    by_panels(block, kernels, [deep, long], &mut panel);
    PANEL.set(panel);
    true
}

fn by_panels(block: &Block<'_, f32>, kernels: &Kernels, [deep, long]: [usize; 2], panel: &mut [Line]) {
    let depth = block.weight.depth;
    for start in (0..depth).step_by(long) {
        let terms = start..depth.min(start + long);
        for first in block.columns.clone().step_by(WIDE) {
            let columns = first..block.columns.end.min(first + WIDE);
            // SAFETY: the machine has AVX2, as it has kernels.
            unsafe {
                match block.weight.elements {
                    Elements::Same(elements) | Elements::Widened(elements) | Elements::PairBits(elements) => {
                        lay_out(elements, block, terms.clone(), columns.clone(), panel);
                    }
                    Elements::Brain(elements) => lay_out(elements, block, terms.clone(), columns.clone(), panel),
                    Elements::Pairs(elements) => lay_out(elements, block, terms.clone(), columns.clone(), panel),
                }
            }
            let part = Part { block, kernels, terms: terms.clone(), deep, columns, panel };
            part.multiply_rows(block.rows.clone());
        }
    }
}

/// Terms of one sum, where there are `depth` in all: as equal as can be.
fn deep(depth: usize) -> usize {
    depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(LANES / 2)
}

/// The product of a block's rows with a panel.
struct Part<'a> {
    block: &'a Block<'a, f32>,
    kernels: &'a Kernels,
    terms: Range<usize>,
    /// Terms in one sum.
    deep: usize,
    columns: Range<usize>,
    panel: &'a [Line],
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
        assert!(self.terms.len() * WIDE <= self.panel.len() * LANES && self.terms.end <= self.block.weight.depth);
        // Sums are added up in the first-level cache: the result is far away.
        let mut sums: Sums = [[0.0; WIDE]; TALL];
        for first in rows.clone().step_by(TALL) {
            self.tile(first..rows.end.min(first + TALL), &mut sums);
        }
    }

    /// As many rows as a tile has; `sums` are used where the result is not written at once. The panel was checked.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn tile(&self, rows: Range<usize>, sums: &mut Sums) {
        let Self { block, terms, deep, columns, .. } = self;
        let (begins, ends) = (terms.start == 0, terms.end == block.weight.depth);
        let kernel = self.kernels[rows.len() - 1][columns.len().div_ceil(LANES) - 1];
        let x = block.x.part([rows.start, terms.start], [rows.len(), terms.len()]).as_ptr();
        let panel = self.panel.as_ptr().cast::<f32>();
        let strides = |to: usize| [block.x.1, block.x.2, to];
        if begins && terms.len() <= *deep && columns.len().is_multiple_of(LANES) && block.adds_nothing() {
            let (out, distance) = block.place(rows, columns.clone());
            // SAFETY: `x` holds as many rows as the kernel reads, each up to the last of the terms; so does the panel; the place
            // is as large as the kernel's tile.
            unsafe { kernel(x, panel, terms.len(), out, strides(distance), false) };
            return;
        }
        fetch(block.place(rows.clone(), columns.clone()), rows.len());
        if !begins {
            rows.clone().zip(&mut *sums).for_each(|(row, sums)| block.get(row, columns.clone(), sums));
        }
        for from in (0..terms.len()).step_by(*deep) {
            let (count, more) = ((*deep).min(terms.len() - from), from > 0 || !begins);
            // SAFETY: as above, with a place that no tile is larger than; the first terms wrote it where it is added to.
            unsafe {
                let (x, panel) = (x.add(from * block.x.2), panel.add(from * WIDE));
                kernel(x, panel, count, sums.as_mut_ptr().cast(), strides(WIDE), more);
            }
            if !more {
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

/// Lays out the weights of some terms and columns as rows of `WIDE`. Columns that are missing are left as they are, and
/// what is computed from them is not used.
#[target_feature(enable = "avx2")]
fn lay_out<E: Element>(
    elements: &[E],
    block: &Block<'_, f32>,
    terms: Range<usize>,
    columns: Range<usize>,
    panel: &mut [Line],
) {
    let weight = &block.weight;
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
