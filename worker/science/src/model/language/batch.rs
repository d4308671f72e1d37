//! Token sequences of any lengths, one after the other without padding.

use super::share;
use std::ops::Range;

/// Rows of tokens, none empty. What several of them begin with may be there once, before all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Beginnings, one after the other, then what each row has of its own.
    tokens: Vec<u32>,
    /// Where each beginning ends.
    beginnings: Vec<usize>,
    /// Where each row's own tokens end.
    ends: Vec<usize>,
    /// Which beginning each row has, where it has one.
    begins: Vec<Option<usize>>,
}

impl Batch {
    /// # Errors
    /// Where a row is empty: it has no token whose state or prediction could be asked for.
    pub fn new<R: AsRef<[u32]>>(rows: impl IntoIterator<Item = R>) -> Result<Self, EmptyRow> {
        let rows: Vec<R> = rows.into_iter().collect();
        let rows: Vec<&[u32]> = rows.iter().map(AsRef::as_ref).collect();
        Self::with(&rows, &[], vec![None; rows.len()])
    }

    /// The same rows; what some have in common is there once. Of row i at most the first `most[i]` tokens are shared, and
    /// never its last: hooks do not see what is.
    ///
    /// # Errors
    /// As [`Self::new`].
    ///
    /// # Panics
    /// Where `most` has not one number for each row.
    pub fn sharing<R: AsRef<[u32]>>(rows: impl IntoIterator<Item = R>, most: &[usize]) -> Result<Self, EmptyRow> {
        let rows: Vec<R> = rows.into_iter().collect();
        let rows: Vec<&[u32]> = rows.iter().map(AsRef::as_ref).collect();
        let may = |i: usize| &rows[i][..most[i].min(rows[i].len().saturating_sub(1))];
        let (mut beginnings, mut begins) = (Vec::new(), vec![None; rows.len()]);
        for (members, len) in share::groups(&(0..rows.len()).map(may).collect::<Vec<_>>()) {
            members.iter().for_each(|&row| begins[row] = Some(beginnings.len()));
            beginnings.push(&rows[members[0]][..len]);
        }
        Self::with(&rows, &beginnings, begins)
    }

    fn with(rows: &[&[u32]], beginnings: &[&[u32]], begins: Vec<Option<usize>>) -> Result<Self, EmptyRow> {
        if let Some(empty) = rows.iter().position(|row| row.is_empty()) {
            return Err(EmptyRow(empty));
        }
        let mut tokens = Vec::new();
        let mut append = |part: &[u32]| {
            tokens.extend_from_slice(part);
            tokens.len()
        };
        let ends_of_beginnings = beginnings.iter().map(|part| append(part)).collect();
        let own = |(row, begins): (&&[u32], &Option<usize>)| append(&row[begins.map_or(0, |b| beginnings[b].len())..]);
        let ends = rows.iter().zip(&begins).map(own).collect();
        Ok(Self { tokens, beginnings: ends_of_beginnings, ends, begins })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All tokens: beginnings, then row after row.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Where each beginning lies among the tokens: before all rows.
    pub fn beginnings(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        (0..self.beginnings.len())
            .map(|i| i.checked_sub(1).map_or(0, |before| self.beginnings[before])..self.beginnings[i])
    }

    /// Where the beginning of row `i` lies, if it shares it, else nowhere.
    pub fn beginning(&self, i: usize) -> Range<usize> {
        self.begins[i].and_then(|b| self.beginnings().nth(b)).unwrap_or(0..0)
    }

    /// Where row `i`, or what it has of its own, lies among the tokens.
    pub fn range(&self, i: usize) -> Range<usize> {
        let shared = self.beginnings.last().copied().unwrap_or(0);
        i.checked_sub(1).map_or(shared, |before| self.ends[before])..self.ends[i]
    }

    /// Row `i`, or what it has of its own.
    pub fn row(&self, i: usize) -> &[u32] {
        &self.tokens[self.range(i)]
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("row {0} of the batch has no tokens")]
pub struct EmptyRow(pub usize);

/// A row in one pass through a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its place in the batch as it was first given. Rows may leave a batch (those that have ended while others still
    /// generate); the ones that stay keep their index.
    pub index: usize,
    /// Where its tokens lie among those of the pass. Never empty.
    pub tokens: Range<usize>,
    /// Position of the first of them: how many tokens of the row came before, in earlier passes or a shared prefix.
    pub start: usize,
}

/// The rows of one pass: their tokens follow each other and, with the beginnings that they share, are all N.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Tokens of each beginning, which come before those of all rows.
    beginnings: Vec<usize>,
    rows: Vec<Row>,
}

impl Rows {
    /// Rows by their number of tokens, their index and the position of their first token.
    pub(crate) fn new(rows: impl IntoIterator<Item = (usize, usize, usize)>) -> Self {
        Self::after(Vec::new(), rows)
    }

    /// The same after so many tokens of each beginning.
    fn after(beginnings: Vec<usize>, rows: impl IntoIterator<Item = (usize, usize, usize)>) -> Self {
        let mut from = beginnings.iter().sum();
        let rows = rows.into_iter().map(|(tokens, index, start)| {
            let row = Row { index, tokens: from..from + tokens, start };
            from = row.tokens.end;
            row
        });
        let rows = rows.collect();
        Self { beginnings, rows }
    }

    /// The rows of a batch, each from its own beginning.
    pub fn of(batch: &Batch) -> Self {
        Self::following(batch, (0..batch.len()).map(|i| (i, 0)))
    }

    /// The rows of a batch, by index and number of tokens that came in earlier passes.
    pub(crate) fn following(batch: &Batch, rows: impl Iterator<Item = (usize, usize)>) -> Self {
        let row = |(i, (index, before))| (batch.range(i).len(), index, before + batch.beginning(i).len());
        Self::after(batch.beginnings().map(|range| range.len()).collect(), rows.enumerate().map(row))
    }

    /// `count` rows of `tokens` tokens each.
    pub(crate) fn equal(count: usize, tokens: usize) -> Self {
        Self::new((0..count).map(|i| (tokens, i, 0)))
    }

    /// One of the rows alone, its tokens where they are.
    pub(crate) fn only(row: &Row) -> Self {
        Self { beginnings: Vec::new(), rows: vec![row.clone()] }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Row> {
        self.rows.iter()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Do some of them share their beginnings?
    pub fn share(&self) -> bool {
        !self.beginnings.is_empty()
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> usize {
        self.rows.last().map_or(0, |row| row.tokens.end)
    }

    /// Each token's position in its row, N of them.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        let beginnings = self.beginnings.iter().flat_map(|tokens| 0..*tokens);
        beginnings.chain(self.rows.iter().flat_map(|row| row.start..row.start + row.tokens.len()))
    }

    /// The last token of each row, as an index into the N.
    pub fn last(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().map(|row| row.tokens.end - 1)
    }
}
