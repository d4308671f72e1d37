//! Products with a weight in f32 on x86-64, for any number of rows.
//!
//! A panel of the weight, 64 columns of it, is laid out anew (and widened from bf16) for the innermost loop, used for
//! all rows at hand, and forgotten: for many rows the laying out is lost in the work, for few it hides behind the
//! memory. Each element of the result is a sum over blocks of a fixed depth, in order, so that it does not depend on which rows
//! and columns are computed together, nor on the kind of vectors.

pub mod amx;
pub mod gated;
mod lay_out;
mod tiles;
mod turned;

use crate::{
    float::LANES,
    weight::{Block, COLUMNS, Elements, Left, Weight},
};
use lay_out::{Panel, panels};
use std::{arch::x86_64::*, cell::Cell, ops::Range};
use tiles::{Kernels, Tile, kernels};

/// Columns of a panel: four vectors, so that with `TALL` rows the sums take 24 of AVX-512's 32 registers.
const WIDE: usize = COLUMNS;
/// Rows of a tile of vectors.
const TALL: usize = 6;
/// Sums of the largest tile.
type Sums = [[f32; WIDE]; 2 * amx::ROWS];
/// Terms of one sum, at most: 64 KiB of a panel, in the second-level cache. Fewer would leave more sums to add up.
const DEPTH: usize = 256;
/// Sums of an element that are added up before it is written: with a panel of 384 KiB and the rows at hand, half of a
/// second-level cache.
const SPAN: usize = 6;

/// A vector's worth of memory, where vectors like to begin.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _elements: [f32; LANES],
}

impl Line {
    fn elements(lines: &[Self]) -> &[f32] {
        // SAFETY: a line is an array of its elements.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
    }

    fn elements_mut(lines: &mut [Self]) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
    }
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
    let at_a_time = panels_at_a_time(lines * size_of::<Line>(), block.columns.len().div_ceil(WIDE));
    // Taken: while this thread waits for another it may begin another product.
    let mut room = room(PANEL.take(), at_a_time * lines);
    for start in (0..depth).step_by(long) {
        let terms = start..depth.min(start + long);
        for first in block.columns.clone().step_by(at_a_time * WIDE) {
            let columns = first..block.columns.end.min(first + at_a_time * WIDE);
            let rows = block.rows.clone();
            let panels = panels(&block.weight, kernels, rows.len(), [terms.clone(), columns], &mut room, lines);
            Part { block, kernels, terms: terms.clone(), deep, panels: &panels }.multiply_rows(rows);
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
    let panels = panels(weight, kernels, usize::MAX, [0..weight.depth, 0..weight.columns], &mut room, lines);
    for block in blocks {
        for panels in panels.chunks(panels_at_a_time(lines * size_of::<Line>(), count)) {
            let part = Part { block: &block, kernels, terms: 0..weight.depth, deep, panels };
            part.multiply_rows(block.rows.clone());
        }
        then(block.rows);
    }
    drop(panels);
    PANEL.set(room);
    true
}

/// Panels of so many bytes, of `all`, that rows are multiplied with before the next rows: about equally many each time.
fn panels_at_a_time(bytes: usize, all: usize) -> usize {
    /// What these panels may take of the second-level cache.
    const BYTES: usize = 736 << 10;
    let most = (BYTES / bytes).max(1);
    all.div_ceil(all.div_ceil(most))
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

/// The rows that are multiplied, from the first of the terms on.
struct Rows<'a> {
    elements: &'a [f32],
    first: usize,
    /// Distance between the beginnings of two rows or, where they are laid out in tiles, of two tiles.
    apart: usize,
    in_tiles: bool,
    /// Distances between the rows and the terms of a tile.
    strides: [usize; 2],
}

impl<'a> Rows<'a> {
    fn as_they_are(Left(elements, row, term): Left<'a, f32>, start: usize) -> Self {
        Self { elements: &elements[start * term..], first: 0, apart: row, in_tiles: false, strides: [row, term] }
    }

    /// From the first of some rows of one tile on, as far as they and `terms` terms reach.
    #[inline(always)]
    fn tile(&self, rows: Range<usize>, terms: usize) -> &'a [f32] {
        let ([row, term], before) = (self.strides, rows.start - self.first);
        let before = if self.in_tiles { before / TALL } else { before };
        &self.elements[before * self.apart..][..(rows.len() - 1) * row + (terms - 1) * term + 1]
    }
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
        let mut tiles = |left: &Rows<'_>, rows: Range<usize>| {
            let mut first = rows.start;
            while first < rows.end {
                let end = first + self.kernels.tall(rows.end - first);
                self.panels.iter().for_each(|panel| self.tile(left, first..end, panel, &mut sums));
                first = end;
            }
        };
        if self.block.x.2 <= turned::NEAR {
            let left = Rows::as_they_are(self.block.x, self.terms.start);
            // SAFETY: a tile computes nothing but itself.
            unsafe { self.kernels.with(|| tiles(&left, rows)) }
        } else {
            turned::some_at_a_time(self.block.x, rows, self.terms.clone(), tiles);
        }
    }

    /// As many rows as a tile has; `sums` are used where the result is not written at once.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn tile(&self, left: &Rows<'_>, rows: Range<usize>, panel: &Panel<'_>, sums: &mut Sums) {
        let (Self { block, kernels, terms, deep, .. }, Panel { elements, apart, columns }) = (self, panel);
        let whole = terms.len().next_multiple_of(kernels.whole());
        let vectors = columns.len().div_ceil(LANES);
        assert!((whole - 1) * apart + vectors * LANES <= elements.len() && terms.end <= block.weight.depth);
        let (begins, ends) = (terms.start == 0, terms.end == block.weight.depth);
        let shape = [rows.len(), vectors];
        let x = left.tile(rows.clone(), whole).as_ptr();
        let panel = elements.as_ptr();
        let strides = |to: usize| [left.strides[0], left.strides[1], *apart, to];
        if begins && terms.len() <= *deep && columns.len().is_multiple_of(LANES) && block.adds_nothing() {
            let (out, distance) = block.place(rows, columns.clone());
            let tile = Tile { x, panel, depth: terms.len(), out, strides: strides(distance), add: false };
            // SAFETY: `x` holds as many rows as the kernel reads, each up to the last of the terms; so does the panel; the place
            // is as large as the kernel's tile.
            unsafe { kernels.run(shape, tile) };
            return;
        }
        if !begins {
            rows.clone().zip(&mut *sums).for_each(|(row, sums)| block.get(row, columns.clone(), sums));
        }
        let parts = terms.len().div_ceil(*deep);
        for (part, from) in (0..terms.len()).step_by(*deep).enumerate() {
            // Some at a time: more than the processor waits for at once would hold it up.
            let some = |part: usize| rows.start + rows.len() * part / parts;
            fetch(block, some(part)..some(part + 1), columns.clone(), ends);
            let (depth, add) = ((*deep).min(terms.len() - from), from > 0 || !begins);
            // SAFETY: as above, with a place that no tile is larger than; the first terms wrote it where it is added to.
            unsafe {
                let (x, panel) = (x.add(from * left.strides[1]), panel.add(from * apart));
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

/// Asks for some rows of the result, and of what is added to it where it `ends`, a panel wide, while the sums are made that will be
/// written there.
#[target_feature(enable = "avx2")]
fn fetch(block: &Block<'_, f32>, rows: Range<usize>, columns: Range<usize>, ends: bool) {
    let lines = || (0..columns.len()).step_by(LANES);
    for row in rows {
        let (out, _) = block.place(row..row, columns.clone());
        for line in lines() {
            // A hint, whatever the address.
            _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(line).cast());
        }
        if let (true, Some(residual)) = (ends, block.residual(row)) {
            for line in lines() {
                _mm_prefetch::<_MM_HINT_T0>(residual[columns.start..].as_ptr().wrapping_add(line).cast());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::weight::{self, Elements, Left, Order, Weight};

    fn numbers(seed: u32, len: usize) -> Vec<f32> {
        (0..len as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
    }

    /// (columns, rows) of (rows, columns).
    fn turned(x: &[f32], columns: usize) -> Vec<f32> {
        (0..x.len()).map(|i| x[i % (x.len() / columns) * columns + i / (x.len() / columns)]).collect()
    }

    /// Rows as they are or turned, weights by column or by term, few rows (whose weight may stay where it is) or many: of sizes
    /// that are multiples of a tile and that are not, terms far apart and near, and of sums of one part and several.
    #[test]
    fn the_way_factors_lie_changes_no_byte() {
        for (rows, depth, columns) in
            [(1, 1, 1), (9, 300, 50), (67, 70, 64), (128, 240, 96), (129, 624, 48), (203, 1700, 16), (301, 45, 80)]
        {
            let (x, w) = (numbers(1, rows * depth), numbers(2, depth * columns));
            let (across, by_term) = (turned(&x, depth), turned(&w, depth));
            let product = |x: Left<'_, f32>, w: &[f32], order: Order, at_a_time: usize| {
                let mut out = vec![f32::NAN; rows * columns];
                let weight = Weight { elements: Elements::Same(w), depth, columns, order };
                weight::alone(x, weight, &mut out, at_a_time, |_, _| {});
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let want = product(Left(&x, depth, 1), &w, Order::ByColumn, rows);
            for x in [Left(&x, depth, 1), Left(&across, 1, rows)] {
                for (w, order) in [(&w, Order::ByColumn), (&by_term, Order::ByTerm)] {
                    for at_a_time in [rows, 24, 7] {
                        assert!(product(x, w, order, at_a_time) == want, "{rows} × {depth} × {columns}, {at_a_time}");
                    }
                }
            }
            for (i, &bits) in want.iter().enumerate() {
                let term = |t: usize| f64::from(x[i / columns * depth + t]) * f64::from(w[i % columns * depth + t]);
                let (exact, size) = (0..depth).map(term).fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                // Each term is rounded and added at most `depth` times.
                let bound = depth as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                assert!((f64::from(f32::from_bits(bits)) - exact).abs() <= bound, "{rows} × {depth} × {columns}");
            }
        }
    }
}
