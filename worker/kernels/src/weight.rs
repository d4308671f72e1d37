//! Products of rows with a weight: what weights are made of, and how the work is split.

use crate::{
    Precision,
    buffer::filled,
    float::Float,
    par::{self, Shared},
    product::{self, View},
};
use std::{mem::MaybeUninit, ops::Range};

/// Rows of one piece of work, for which a panel is laid out once. They stream through the second-level cache.
pub const ROWS: usize = 2048;
/// Columns of a piece of work are a multiple of this, the width of a panel.
pub const COLUMNS: usize = 64;

/// bfloat16: the upper half of an f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Brain(pub u16);

impl Brain {
    #[inline(always)]
    pub fn value(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    /// The nearest, of two as near the even one.
    #[inline(always)]
    pub fn nearest(x: f32) -> Self {
        Self((Precision::Bf16.nearest(x).to_bits() >> 16) as u16)
    }
}

/// The elements of a weight.
#[derive(Clone, Copy)]
pub enum Elements<'a, T> {
    Same(&'a [T]),
    Brain(&'a [Brain]),
    /// Numbers of bf16 as well, in elements of T.
    Widened(&'a [T]),
    /// Two terms each, beside an `x` of which each element is two as well: only where [`crate::brain::pairs`] are
    /// multiplied, with the room that they want in each row of `x`.
    Pairs(&'a [[Brain; 2]]),
    /// The same in the bits of an f32, the first in its upper half.
    PairBits(&'a [T]),
}

impl<T> Elements<'_, T> {
    /// Terms of each.
    pub fn terms(&self) -> usize {
        match self {
            Self::Same(_) | Self::Brain(_) | Self::Widened(_) => 1,
            Self::Pairs(_) | Self::PairBits(_) => 2,
        }
    }
}

/// How the elements of a weight follow each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// (columns, depth): each column of the product has its weights together.
    ByColumn,
    /// (depth, columns).
    ByTerm,
}

/// What is multiplied with, as (depth, columns) whatever the order.
#[derive(Clone, Copy)]
pub struct Weight<'a, T> {
    pub elements: Elements<'a, T>,
    pub depth: usize,
    pub columns: usize,
    pub order: Order,
}

/// What a weight is multiplied with: (elements, distance between rows, distance between terms).
#[derive(Clone, Copy)]
pub struct Left<'a, T>(pub &'a [T], pub usize, pub usize);

impl<'a, T> Left<'a, T> {
    /// Rows side by side, as many as there are.
    pub fn of(x: &'a [T], depth: usize) -> (Self, usize) {
        assert!(x.len().is_multiple_of(depth), "rows of {depth}");
        (Self(x, depth, 1), x.len() / depth)
    }

    /// From a row's term on, as far as `rows` rows and `terms` terms reach.
    #[inline(always)]
    pub fn part(&self, [row, term]: [usize; 2], [rows, terms]: [usize; 2]) -> &'a [T] {
        let reach = if rows * terms == 0 { 0 } else { (rows - 1) * self.1 + (terms - 1) * self.2 + 1 };
        &self.0[row * self.1 + term * self.2..][..reach]
    }
}

/// What is added to a product.
#[derive(Clone, Copy)]
pub enum Added<'a, T> {
    Nothing,
    /// The same for every row.
    Bias(&'a [T]),
    /// As many elements as the product has, added to its elements when these are whole: so the bytes are those of a
    /// product that something is added to later.
    Residual(&'a [T]),
}

/// One piece of a product `x·W`: some rows and some columns.
pub struct Block<'a, T> {
    /// All rows.
    pub x: Left<'a, T>,
    pub weight: Weight<'a, T>,
    added: Added<'a, T>,
    /// All of the result.
    out: Shared<T>,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// May a thread that has nothing to do take some of the rows?
    pub helped: bool,
}

/// `x·W` and what is `added`, for `x` of so many rows.
///
/// No element depends on how the work is split, so that it may be split by the number of threads.
pub fn product<T: Float>(x: Left<'_, T>, rows: usize, weight: Weight<'_, T>, added: Added<'_, T>) -> Vec<T> {
    let held = match weight.elements {
        Elements::Same(elements) | Elements::Widened(elements) | Elements::PairBits(elements) => elements.len(),
        Elements::Brain(elements) => elements.len(),
        Elements::Pairs(elements) => elements.len(),
    };
    assert!(x.part([0, 0], [rows, weight.depth]).len() <= x.0.len() && held == weight.depth * weight.columns);
    match added {
        Added::Nothing => {}
        Added::Bias(bias) => assert_eq!(bias.len(), weight.columns),
        Added::Residual(residual) => assert_eq!(residual.len(), rows * weight.columns),
    }
    let fill = |out: &mut [MaybeUninit<T>]| {
        let out = Shared::new(out.as_mut_ptr().cast());
        let (tall, wide) = (ROWS.min(rows.max(1)), columns_at_a_time(rows, weight.columns));
        let pieces = (0..rows).step_by(tall).flat_map(|row| (0..weight.columns).step_by(wide).map(move |c| (row, c)));
        // Reading a weight costs as much as half an activation function; so do some ten multiplications.
        let work = weight.depth * weight.columns * (4 + rows) / 8;
        par::each(work, pieces, |(row, column)| {
            let (rows, columns) = (row..rows.min(row + tall), column..weight.columns.min(column + wide));
            Block { x, weight, added, out, rows, columns, helped: true }.compute();
        });
    };
    // SAFETY: the pieces cover all rows and columns, and `compute` writes all of each.
    unsafe { filled(rows * weight.columns, fill).0 }
}

/// The product `x·W`, computed on this thread in `out`, some rows at a time: these are handed to `finish`, with their range of
/// `out`'s elements, while they are in the cache.
pub fn alone<T: Float>(
    x: Left<'_, T>,
    weight: Weight<'_, T>,
    out: &mut [T],
    at_a_time: usize,
    mut finish: impl FnMut(Range<usize>, &mut [T]),
) {
    let (rows, columns) = (out.len() / weight.columns, 0..weight.columns);
    assert_eq!(out.len(), rows * weight.columns);
    let whole = Shared::new(out.as_mut_ptr());
    let block = |start: usize| {
        let (rows, columns, helped) = (start..rows.min(start + at_a_time), columns.clone(), false);
        Block { x, weight, added: Added::Nothing, out: whole, rows, columns, helped }
    };
    let starts = (0..rows).step_by(at_a_time);
    let mut finished = |rows: Range<usize>| {
        let range = rows.start * weight.columns..rows.end * weight.columns;
        // SAFETY: within `out`, of which no part is in use: a block was computed, and the next was not begun.
        finish(range.clone(), unsafe { whole.part(range.start, range.len()) });
    };
    if rows > at_a_time && T::all_by_panels(starts.clone().map(block), &weight, &mut finished) {
        return;
    }
    for block in starts.map(block) {
        block.compute();
        finished(block.rows);
    }
}

/// Few enough that every thread has several pieces, where there are enough columns for that.
fn columns_at_a_time(rows: usize, columns: usize) -> usize {
    /// Panels that share a block of rows in the cache.
    const PANELS: usize = 3;
    let pieces = (2 * rayon::current_num_threads()).div_ceil(rows.div_ceil(ROWS).max(1));
    (columns / (pieces * COLUMNS)).clamp(1, PANELS) * COLUMNS
}

impl<'a, T: Float> Block<'a, T> {
    /// By panels where the machine and the type allow it, else by `gemm`.
    fn compute(&self) {
        if T::by_panels(self) {
            return;
        }
        match self.weight.elements {
            Elements::Same(elements) | Elements::Widened(elements) => {
                self.general(elements, self.weight, self.columns.start);
            }
            Elements::Brain(elements) => {
                let (depth, columns) = (self.weight.depth, self.columns.len());
                let value = |brain: &Brain| T::of(brain.value().into());
                let (widened, weight): (Vec<T>, _) = match self.weight.order {
                    Order::ByColumn => {
                        let part = &elements[self.columns.start * depth..self.columns.end * depth];
                        (part.iter().map(value).collect(), Weight { columns, ..self.weight })
                    }
                    Order::ByTerm => {
                        let part = |row: &'_ [Brain]| row[self.columns.clone()].iter().map(value).collect::<Vec<_>>();
                        let rows = elements.chunks_exact(self.weight.columns).flat_map(part);
                        (rows.collect(), Weight { columns, ..self.weight })
                    }
                };
                self.general(&widened, weight, 0);
            }
            Elements::Pairs(_) | Elements::PairBits(_) => unreachable!("pairs are multiplied by panels"),
        }
    }

    /// By `gemm`, with the block's columns from `first` of a weight of this shape.
    fn general(&self, elements: &[T], weight: Weight<'_, T>, first: usize) {
        let Weight { depth, columns, order, .. } = weight;
        assert!(elements.len() == depth * columns && first + self.columns.len() <= columns);
        let view = match order {
            Order::ByColumn => View(elements[first * depth..].as_ptr(), 1, depth),
            Order::ByTerm => View(elements[first..].as_ptr(), columns, 1),
        };
        let x = self.x.part([self.rows.start, 0], [self.rows.len(), depth]);
        let x = View(x.as_ptr(), self.x.1, self.x.2);
        let out = self.out.at(self.rows.start * self.weight.columns + self.columns.start);
        // SAFETY: the views cover the shapes, as checked; this piece of the result is ours alone.
        unsafe { product::multiply(out, self.weight.columns, [self.rows.len(), depth, self.columns.len()], x, view) };
        for row in self.rows.clone() {
            let out = self.part(row, self.columns.clone());
            self.add_bias(self.columns.clone(), out);
            self.add_residual(row, self.columns.clone(), out);
        }
    }

    /// Some columns of a row of the result.
    #[inline(always)]
    fn part(&self, row: usize, columns: Range<usize>) -> &'a mut [T] {
        assert!(self.rows.contains(&row) && self.columns.start <= columns.start && columns.end <= self.columns.end);
        // SAFETY: it is within the block, which is ours alone, and lives as long as the block.
        unsafe { self.out.part(row * self.weight.columns + columns.start, columns.len()) }
    }

    /// Where some rows and columns of the result lie, and how far apart the rows are.
    #[inline(always)]
    pub fn place(&self, rows: Range<usize>, columns: Range<usize>) -> (*mut T, usize) {
        assert!(self.rows.start <= rows.start && rows.end <= self.rows.end);
        assert!(self.columns.start <= columns.start && columns.end <= self.columns.end);
        (self.out.at(rows.start * self.weight.columns + columns.start), self.weight.columns)
    }

    /// Reads some columns of a row of the result, which must have been written.
    #[inline(always)]
    pub fn get(&self, row: usize, columns: Range<usize>, sums: &mut [T; COLUMNS]) {
        let part = self.part(row, columns);
        sums[..part.len()].copy_from_slice(part);
    }

    /// Writes some columns of a row of the result.
    #[inline(always)]
    pub fn put(&self, row: usize, columns: Range<usize>, sums: &[T; COLUMNS]) {
        let part = self.part(row, columns);
        // A known length makes this a few vectors instead of a call.
        match <&mut [T; COLUMNS]>::try_from(&mut *part) {
            Ok(part) => *part = *sums,
            Err(_) => part.copy_from_slice(&sums[..part.len()]),
        }
    }

    /// Is the product all there is?
    pub fn adds_nothing(&self) -> bool {
        matches!(self.added, Added::Nothing)
    }

    /// Adds the bias, where there is one, to `sums` of some columns.
    #[inline(always)]
    pub fn add_bias(&self, columns: Range<usize>, sums: &mut [T]) {
        if let Added::Bias(bias) = self.added {
            sums.iter_mut().zip(&bias[columns]).for_each(|(sum, &bias)| *sum += bias);
        }
    }

    /// A row of the residual, where there is one.
    #[inline(always)]
    pub fn residual(&self, row: usize) -> Option<&'a [T]> {
        let Added::Residual(residual) = self.added else { return None };
        Some(&residual[row * self.weight.columns..][..self.weight.columns])
    }

    /// Adds the residual, where there is one, to some columns of a row of the product.
    #[inline(always)]
    pub fn add_residual(&self, row: usize, columns: Range<usize>, sums: &mut [T]) {
        if let Some(residual) = self.residual(row) {
            sums.iter_mut().zip(&residual[columns]).for_each(|(sum, &residual)| *sum += residual);
        }
    }
}
