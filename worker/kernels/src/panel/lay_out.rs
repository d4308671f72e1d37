//! Panels of a weight, and how they are laid out.

use super::{LANES, Line, WIDE, tiles::Kernels};
use crate::{
    transpose::{self, Element, InMemory, SIDE},
    weight::{Elements, Order, Weight},
};
use std::{arch::x86_64::*, ops::Range, slice::ChunksExactMut};

/// Terms that are asked for before they are laid out.
const AHEAD: usize = 2;
/// Bytes that come from memory together.
const LINE: usize = size_of::<Line>();

/// Some columns of the weight.
pub struct Panel<'a> {
    pub elements: &'a [f32],
    /// Distance between its terms.
    pub apart: usize,
    pub columns: Range<usize>,
}

impl<'a> Panel<'a> {
    pub fn laid_out(lines: &'a [Line], columns: Range<usize>) -> Self {
        Self { elements: Line::elements(lines), apart: WIDE, columns }
    }
}

/// The columns of one panel after the other.
fn each_panel(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    columns.clone().step_by(WIDE).map(move |first| first..columns.end.min(first + WIDE))
}

/// Panels of some terms and columns that so many rows are multiplied with, laid out in so many lines of `room` each.
pub fn panels<'a>(
    weight: &Weight<'a, f32>,
    kernels: Kernels,
    rows: usize,
    [terms, columns]: [Range<usize>; 2],
    room: &'a mut [Line],
    lines: usize,
) -> Vec<Panel<'a>> {
    if let Some(elements) = as_it_is(weight, rows) {
        let apart = weight.columns;
        let from = |columns: &Range<usize>| &elements[terms.start * apart + columns.start..];
        return each_panel(columns).map(|columns| Panel { elements: from(&columns), apart, columns }).collect();
    }
    // SAFETY: the machine has AVX2, as it has kernels.
    unsafe { lay_out_panels(weight, kernels, terms, columns.clone(), room, lines) };
    each_panel(columns).zip(room.chunks_exact(lines)).map(|(columns, lines)| Panel::laid_out(lines, columns)).collect()
}

/// The elements of a weight whose panels are read where they are: small, by term, in whole vectors, and multiplied with too few
/// rows to pay for laying it out.
fn as_it_is<'a>(weight: &Weight<'a, f32>, rows: usize) -> Option<&'a [f32]> {
    const ROWS: usize = 256;
    const ELEMENTS: usize = 1 << 16;
    let (Elements::Same(elements) | Elements::Widened(elements)) = weight.elements else { return None };
    let small = rows <= ROWS && elements.len() <= ELEMENTS;
    (small && weight.order == Order::ByTerm && weight.columns.is_multiple_of(LANES)).then_some(elements)
}

/// Lays out panels, with zeros behind terms that are no whole block.
#[target_feature(enable = "avx2")]
pub fn lay_out_panels(
    weight: &Weight<'_, f32>,
    kernels: Kernels,
    terms: Range<usize>,
    columns: Range<usize>,
    room: &mut [Line],
    lines: usize,
) {
    let (end, whole) = (terms.len(), terms.len().next_multiple_of(kernels.whole()));
    let room = &mut room[..columns.len().div_ceil(WIDE) * lines];
    for panel in room.chunks_exact_mut(lines) {
        panel[end * WIDE / LANES..whole * WIDE / LANES].fill(Line { _elements: [0.0; LANES] });
    }
    let panels = Line::elements_mut(room).chunks_exact_mut(lines * LANES);
    match (weight.elements, kernels) {
        (Elements::Same(elements) | Elements::Widened(elements) | Elements::PairBits(elements), _) => {
            lay_out(elements, weight, terms, columns, panels);
        }
        (Elements::Brain(elements), _) => lay_out(elements, weight, terms, columns, panels),
        (Elements::Pairs(elements), Kernels::Vectors(_)) => lay_out(elements, weight, terms, columns, panels),
        (Elements::Pairs(elements), Kernels::Amx) => lay_out(InMemory::of(elements), weight, terms, columns, panels),
    }
}

/// Lays out the weights of some terms and columns as rows of `WIDE`, in a panel after the other. Columns that are missing are left
/// as they are, and what is computed from them is not used.
#[target_feature(enable = "avx2")]
fn lay_out<E: Element>(
    elements: &[E],
    weight: &Weight<'_, f32>,
    terms: Range<usize>,
    columns: Range<usize>,
    panels: ChunksExactMut<'_, f32>,
) {
    match weight.order {
        Order::ByTerm => {
            let mut panels: Vec<_> = panels.map(|panel| panel.chunks_exact_mut(WIDE)).collect();
            for term in terms {
                let weights = &elements[term * weight.columns..][columns.clone()];
                for weights in weights.chunks(LINE / size_of::<E>()) {
                    // The processor foresees nothing beyond a page.
                    _mm_prefetch::<_MM_HINT_T0>(weights.as_ptr().wrapping_add(AHEAD * weight.columns).cast());
                }
                for (panel, weights) in panels.iter_mut().filter_map(Iterator::next).zip(weights.chunks(WIDE)) {
                    // A known length makes this a few vectors instead of a call.
                    match <&[E; WIDE]>::try_from(weights) {
                        Ok(weights) => (0..WIDE).for_each(|i| panel[i] = weights[i].widened()),
                        Err(_) => panel.iter_mut().zip(weights).for_each(|(to, from)| *to = from.widened()),
                    }
                }
            }
        }
        Order::ByColumn => {
            for (panel, first) in panels.zip(columns.clone().step_by(WIDE)) {
                let columns = first..columns.end.min(first + WIDE);
                for (i, first) in columns.clone().step_by(SIDE).enumerate() {
                    let rows = elements[first * weight.depth..columns.end.min(first + SIDE) * weight.depth]
                        .chunks_exact(weight.depth)
                        .map(|row| &row[terms.clone()]);
                    lay_out_columns(rows, weight.depth, &mut panel[i * SIDE..]);
                }
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
