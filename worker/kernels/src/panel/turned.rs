//! Rows whose terms lie far apart, as those of a wide transposed matrix do: the terms of a tile's rows are laid out one after the
//! other. Read where they are, each term would be a cache line of its own, and at a distance of a power of two all of them would
//! want the same few places of the first-level cache.

use super::{LANES, Line, Rows, TALL, room};
use crate::weight::Left;
use std::{
    arch::x86_64::{_MM_HINT_T0, _mm_prefetch},
    cell::Cell,
    ops::Range,
};

/// Terms that are at most so far apart are read where they are: the processor asks for them in time.
pub(super) const NEAR: usize = 256;
/// Rows at a time: a few cache lines of each term, so that a page of memory is not looked up for one.
const AT_A_TIME: usize = 16 * TALL;
/// Places for the rows of a tile, of which the last stay empty: half a vector.
const PLACES: usize = LANES / 2;
/// Terms that are asked for before they are needed: the processor foresees none beyond a page.
const AHEAD: usize = 32;

thread_local! {
    /// Where a thread lays out rows.
    static TURNED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// `then` of some rows after the other, as they are laid out, and which they are.
#[target_feature(enable = "avx2")]
pub(super) fn some_at_a_time(
    x: Left<'_, f32>,
    rows: Range<usize>,
    terms: Range<usize>,
    mut then: impl FnMut(&Rows<'_>, Range<usize>),
) {
    let lines = AT_A_TIME / TALL * PLACES / LANES * terms.len();
    let mut room = room(TURNED.take(), lines);
    for first in rows.clone().step_by(AT_A_TIME) {
        let some = first..rows.end.min(first + AT_A_TIME);
        let to = Line::elements_mut(&mut room[..lines]);
        lay_out(x, some.clone(), terms.clone(), to);
        let strides = [1, PLACES];
        then(&Rows { elements: to, first, apart: PLACES * terms.len(), in_tiles: true, strides }, some);
    }
    TURNED.set(room);
}

/// Tiles of rows, (terms, `PLACES`) each. Places without a row may hold anything.
#[target_feature(enable = "avx2")]
fn lay_out(x: Left<'_, f32>, rows: Range<usize>, terms: Range<usize>, to: &mut [f32]) {
    let distance = PLACES * terms.len();
    // Tiles of which even the empty places may be read.
    let whole = if x.1 == 1 && rows.len() >= PLACES { (rows.len() - PLACES) / TALL + 1 } else { 0 };
    for (i, term) in terms.enumerate() {
        fetch(x, rows.start, term + AHEAD);
        let from = x.part([rows.start, term], [rows.len(), 1]);
        let (tiles, rest) = to[i * PLACES..].split_at_mut(whole * distance);
        for (to, from) in tiles.chunks_exact_mut(distance).zip(from.windows(PLACES).step_by(TALL)) {
            to[..PLACES].copy_from_slice(from);
        }
        for (to, first) in rest.chunks_mut(distance).zip((whole * TALL..rows.len()).step_by(TALL)) {
            let from = from[first * x.1..].iter().step_by(x.1);
            to[..TALL].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

/// Asks for a term of some rows.
fn fetch(x: Left<'_, f32>, row: usize, term: usize) {
    let from = x.0.as_ptr().wrapping_add(row * x.1 + term * x.2);
    for line in (0..AT_A_TIME).step_by(LANES) {
        // SAFETY: a hint, whatever the address; SSE is part of the target.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
    }
}
