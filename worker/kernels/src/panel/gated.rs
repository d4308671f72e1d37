//! Two products with the same rows whose results are joined, element by element, while they are in the first-level cache.

use super::{
    LANES, PANEL, Summing, Sums, WIDE, amx,
    lay_out::{Panel, lay_out_panels},
    room,
    tiles::Tile,
};
use crate::{
    Activation,
    gated::Joined,
    par::{self, Shared},
    weight::{Left, ROWS, Weight},
};
use std::{arch::x86_64::*, ops::Range};

/// What the panels of both weights may take of the second-level cache.
const BYTES: usize = 704 << 10;

/// Are products with such weights made here? Their terms must be few enough for a panel of each to stay in the cache.
pub fn takes(weight: &Weight<'_, f32>) -> bool {
    Summing::of(weight).is_some_and(|sums| wide(&sums, weight.depth) > 0)
}

/// Panels of each weight that rows are multiplied with before the next rows.
fn wide(sums: &Summing, depth: usize) -> usize {
    BYTES / (2 * sums.lines(depth) * LANES * size_of::<f32>())
}

/// `activation(x·gateᵀ) · (x·upᵀ)` in `out`, for two weights that this [`takes`], of one shape.
pub fn product<O: Joined>(
    x: Left<'_, f32>,
    rows: usize,
    weights: [Weight<'_, f32>; 2],
    activation: Activation,
    out: Shared<O>,
) {
    let [Weight { depth, columns, .. }, up] = weights;
    assert!(up.depth == depth && up.columns == columns && x.2 == 1);
    let sums = Summing::of(&weights[0]).expect("these products are taken");
    let threads = rayon::current_num_threads();
    let tall = ROWS.min(rows.div_ceil(threads).next_multiple_of(2 * amx::ROWS)).max(amx::ROWS);
    let wide = wide(&sums, depth) * WIDE;
    let pieces = (0..rows).step_by(tall).flat_map(|row| (0..columns).step_by(wide).map(move |column| (row, column)));
    let work = weights[0].elements.terms() * depth * columns * (4 + rows) / 4;
    par::each(work, pieces, |(row, column)| {
        let (rows, columns) = (row..rows.min(row + tall), column..columns.min(column + wide));
        // SAFETY: the machine has AVX2, as it has kernels.
        unsafe { Piece { x, weights: &weights, sums, activation, out }.compute(rows, columns) };
    });
}

struct Piece<'a, O> {
    x: Left<'a, f32>,
    weights: &'a [Weight<'a, f32>; 2],
    sums: Summing,
    activation: Activation,
    out: Shared<O>,
}

impl<O: Joined> Piece<'_, O> {
    /// Some rows and the columns of a few panels.
    #[target_feature(enable = "avx2")]
    fn compute(&self, rows: Range<usize>, columns: Range<usize>) {
        let (kernels, depth) = (self.sums.kernels, self.weights[0].depth);
        let lines = self.sums.lines(depth);
        let mut room = room(PANEL.take(), 2 * lines * columns.len().div_ceil(WIDE));
        let mut both: Vec<[Panel<'_>; 2]> = Vec::new();
        for (room, first) in room.chunks_exact_mut(2 * lines).zip(columns.clone().step_by(WIDE)) {
            let columns = first..columns.end.min(first + WIDE);
            let (gate, up) = room.split_at_mut(lines);
            let panels = [(&self.weights[0], gate), (&self.weights[1], up)].map(|(weight, room)| {
                lay_out_panels(weight, kernels, 0..depth, columns.clone(), room, lines);
                Panel::laid_out(room, columns.clone())
            });
            both.push(panels);
        }
        // SAFETY: the machine is ready, as it has these kernels; a tile computes nothing but itself.
        unsafe { kernels.with(|| self.tiles(rows, &both)) };
        drop(both);
        PANEL.set(room);
    }

    #[target_feature(enable = "avx2")]
    fn tiles(&self, rows: Range<usize>, both: &[[Panel<'_>; 2]]) {
        let mut sums: [Sums; 2] = [[[0.0; WIDE]; 2 * amx::ROWS]; 2];
        let mut joined = [O::NONE; 2 * amx::ROWS * WIDE];
        let mut first = rows.start;
        while first < rows.end {
            let tall = self.sums.kernels.tall(rows.end - first);
            for panels in both {
                let columns = panels[0].columns.clone();
                self.fetch(first..first + tall, &columns);
                for (panel, sums) in panels.iter().zip(&mut sums) {
                    self.tile(first..first + tall, panel, sums);
                }
                let ([gate, up], joined) = (&sums, &mut joined[..tall * WIDE]);
                O::join(self.activation, gate.as_flattened(), up.as_flattened(), joined);
                for (row, joined) in (first..).zip(joined.chunks_exact(WIDE)) {
                    // SAFETY: within the rows and columns of this piece, which are its alone.
                    let out = unsafe { self.out.part(self.place(row, &columns), columns.len()) };
                    // A known length makes this a few vectors instead of a call.
                    match (<&mut [O; WIDE]>::try_from(&mut *out), joined.first_chunk()) {
                        (Ok(out), Some(joined)) => *out = *joined,
                        _ => out.copy_from_slice(&joined[..columns.len()]),
                    }
                }
            }
            first += tall;
        }
    }

    /// The sums of some rows, as many as a tile has, with one panel.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn tile(&self, rows: Range<usize>, panel: &Panel<'_>, sums: &mut Sums) {
        let (Summing { kernels, deep, .. }, depth) = (self.sums, self.weights[0].depth);
        let whole = depth.next_multiple_of(kernels.whole());
        let x = self.x.part([rows.start, 0], [rows.len(), whole]);
        assert!(whole * WIDE <= panel.elements.len());
        let strides = [self.x.1, 1, panel.apart, WIDE];
        for from in (0..depth).step_by(deep) {
            let (x, panel_at) = (x[from..].as_ptr(), panel.elements[from * WIDE..].as_ptr());
            let (depth, out, add) = (deep.min(depth - from), sums.as_mut_ptr().cast(), from > 0);
            let tile = Tile { x, panel: panel_at, depth, out, strides, add };
            // SAFETY: `x` holds the rows, in whole blocks, and so does the panel; no tile is larger than `sums`.
            unsafe { kernels.run([rows.len(), panel.columns.len().div_ceil(LANES)], tile) };
        }
    }

    /// Where some columns of a row begin.
    fn place(&self, row: usize, columns: &Range<usize>) -> usize {
        row * self.weights[0].columns + columns.start
    }

    /// Asks for what will be written.
    #[target_feature(enable = "avx2")]
    fn fetch(&self, rows: Range<usize>, columns: &Range<usize>) {
        for row in rows {
            for line in (0..columns.len()).step_by(LANES * size_of::<f32>() / size_of::<O>()) {
                // A hint, whatever the address.
                _mm_prefetch::<_MM_HINT_ET0>(self.out.at(self.place(row, columns) + line).cast());
            }
        }
    }
}
