//! Two products with the same rows whose results are joined, element by element, while they are in the first-level cache.

use super::{
    DEPTH, LANES, Line, PANEL, SPAN, Sums, WIDE, amx,
    lay_out::lay_out_panels,
    room,
    tiles::{Kernels, Tile},
};
use crate::{
    Activation,
    brain::{self, Factor, Pairs},
    gated::{gelu_rounded, silu_rounded},
    par::{self, Shared},
    weight::{Brain, Elements, Left, ROWS, Weight},
};
use std::ops::Range;

/// Pairs of the terms of one sum, at most.
const MOST: usize = SPAN * DEPTH;
/// Panels of each weight that rows are multiplied with before the next rows.
const PANELS: usize = 2;

/// Are products of so many terms made here?
pub fn takes(depth: usize) -> bool {
    brain::pairs() == Some(Pairs::Tiles) && depth.is_multiple_of(2) && depth / 2 <= MOST
}

/// `activation(x·gateᵀ) · (x·upᵀ)`, in `out`, for weights by column in bf16 that this [`takes`].
pub fn product(x: Factor<'_>, rows: usize, weights: [Weight<'_, f32>; 2], activation: Activation, out: Shared<Brain>) {
    let [Weight { depth, columns, .. }, _] = weights;
    assert!(takes(depth) && weights[1].depth == depth && weights[1].columns == columns);
    let weights = weights.map(|weight| match weight.elements {
        Elements::Brain(brains) => {
            assert_eq!(brains.len(), depth * columns);
            Weight { elements: Elements::Pairs(brains.as_chunks().0), depth: depth / 2, ..weight }
        }
        _ => unreachable!("weights are bf16"),
    });
    let x = Pairs::Tiles.rows(x, depth);
    let x = Left(&x, Pairs::Tiles.room(depth), 1);
    let threads = rayon::current_num_threads();
    let tall = ROWS.min(rows.div_ceil(threads).next_multiple_of(2 * amx::ROWS)).max(amx::ROWS);
    let wide = PANELS * WIDE;
    let pieces = (0..rows).step_by(tall).flat_map(|row| (0..columns).step_by(wide).map(move |column| (row, column)));
    par::each(depth * columns * (4 + rows) / 4, pieces, |(row, column)| {
        let (rows, columns) = (row..rows.min(row + tall), column..columns.min(column + wide));
        Piece { x, weights: &weights, activation, out }.compute(rows, columns);
    });
}

struct Piece<'a> {
    x: Left<'a, f32>,
    /// Of pairs.
    weights: &'a [Weight<'a, f32>; 2],
    activation: Activation,
    out: Shared<Brain>,
}

/// The same columns of both weights, laid out.
struct Both<'a> {
    panels: [&'a [Line]; 2],
    columns: Range<usize>,
}

impl Piece<'_> {
    /// Some rows and the columns of a few panels.
    fn compute(&self, rows: Range<usize>, columns: Range<usize>) {
        let depth = self.weights[0].depth;
        let lines = depth.next_multiple_of(amx::PAIRS) * WIDE / LANES;
        let mut room = room(PANEL.take(), 2 * PANELS * lines);
        let mut both = Vec::with_capacity(PANELS);
        for (room, first) in room.chunks_exact_mut(2 * lines).zip(columns.clone().step_by(WIDE)) {
            let columns = first..columns.end.min(first + WIDE);
            for (weight, panel) in self.weights.iter().zip(room.chunks_exact_mut(lines)) {
                // SAFETY: a machine with AMX has AVX2.
                unsafe { lay_out_panels(weight, Kernels::Amx, 0..depth, columns.clone(), panel, lines) };
            }
            let (gate, up) = room.split_at(lines);
            both.push(Both { panels: [gate, up], columns });
        }
        // SAFETY: the machine is ready, as these products are taken; a tile computes nothing but itself.
        unsafe { amx::with_registers(|| self.tiles(rows, &both)) };
        PANEL.set(room);
    }

    fn tiles(&self, rows: Range<usize>, both: &[Both<'_>]) {
        let mut sums: [Sums; 2] = [[[0.0; WIDE]; 2 * amx::ROWS]; 2];
        let mut joined = [Brain(0); 2 * amx::ROWS * WIDE];
        let [Weight { depth, columns: all, .. }, _] = self.weights;
        let mut first = rows.start;
        while first < rows.end {
            let tall = amx::tall(rows.end - first);
            let x = self.x.part([first, 0], [tall, depth.next_multiple_of(amx::PAIRS)]).as_ptr();
            for Both { panels, columns } in both {
                for (panel, sums) in panels.iter().zip(&mut sums) {
                    let (panel, out, strides) =
                        (panel.as_ptr().cast(), sums.as_mut_ptr().cast(), [self.x.1, 1, WIDE, WIDE]);
                    let tile = Tile { x, panel, depth: *depth, out, strides, add: false };
                    // SAFETY: `x` holds the rows, in whole blocks, and so does the panel; no tile is larger than `sums`.
                    unsafe { amx::tile(tall, columns.len().div_ceil(LANES), tile) };
                }
                let ([gate, up], joined) = (&sums, &mut joined[..tall * WIDE]);
                match self.activation {
                    Activation::Silu => silu_rounded(gate.as_flattened(), up.as_flattened(), joined),
                    Activation::GeluTanh => gelu_rounded(gate.as_flattened(), up.as_flattened(), joined),
                }
                for (row, joined) in (first..).zip(joined.chunks_exact(WIDE)) {
                    // SAFETY: within the rows and columns of this piece, which are its alone.
                    let out = unsafe { self.out.part(row * all + columns.start, columns.len()) };
                    // A known length makes this a few vectors instead of a call.
                    match (<&mut [Brain; WIDE]>::try_from(&mut *out), joined.first_chunk()) {
                        (Ok(out), Some(joined)) => *out = *joined,
                        _ => out.copy_from_slice(&joined[..columns.len()]),
                    }
                }
            }
            first += tall;
        }
    }
}
