//! Rows whose terms lie at a distance, as those of a transposed matrix do: the terms of a tile's rows are laid out one after the
//! other. Read where they are, each term would be a cache line of its own, and at a distance of a power of two all of them would
//! want the same few places of the first-level cache.

use super::{LANES, Line, Rows, TALL, room};
use crate::weight::Left;
use std::{
    arch::x86_64::{_MM_HINT_T0, _mm_prefetch},
    cell::Cell,
    ops::Range,
};

/// Rows at a time: a few cache lines of each term, so that a page of memory is not looked up for one.
const AT_A_TIME: usize = 4 * LANES;
/// Terms that are asked for before they are needed: the processor foresees none beyond a page.
const AHEAD: usize = 32;

thread_local! {
    /// Where a thread lays out rows.
    static TURNED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// `then` of some rows after the other, as they are laid out, and which they are.
pub(super) fn some_at_a_time(
    x: Left<'_, f32>,
    rows: Range<usize>,
    terms: Range<usize>,
    mut then: impl FnMut(&Rows<'_>, Range<usize>),
) {
    let lines = AT_A_TIME / LANES * terms.len();
    let mut room = room(TURNED.take(), lines);
    for first in rows.clone().step_by(AT_A_TIME) {
        let some = first..rows.end.min(first + AT_A_TIME);
        let to = Line::elements_mut(&mut room[..lines]);
        lay_out(x, some.clone(), terms.clone(), to);
        then(&Rows { elements: to, first, apart: terms.len(), strides: [1, TALL] }, some);
    }
    TURNED.set(room);
}

/// Tiles of rows, (terms, `TALL`) each. Rows that are missing in the last are left as they are.
fn lay_out(x: Left<'_, f32>, rows: Range<usize>, terms: Range<usize>, to: &mut [f32]) {
    let whole = if x.1 == 1 { rows.len() / TALL } else { 0 };
    for (i, term) in terms.clone().enumerate() {
        fetch(x, rows.start, term + AHEAD);
        let from = x.part([rows.start, term], [rows.len(), 1]);
        let mut tiles = to.chunks_exact_mut(TALL * terms.len()).map(|tile| &mut tile[i * TALL..][..TALL]);
        for (to, from) in tiles.by_ref().zip(from.as_chunks::<TALL>().0).take(whole) {
            to.copy_from_slice(from);
        }
        let rest = from.iter().step_by(x.1).skip(whole * TALL);
        tiles.flatten().zip(rest).for_each(|(to, from)| *to = *from);
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
