//! Token sequences of any lengths, one after the other without padding.

use std::ops::Range;

/// Rows of tokens. Row i is `tokens[starts[i]..starts[i + 1]]`, and none is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    tokens: Vec<u32>,
    starts: Vec<usize>,
}

impl Batch {
    /// # Errors
    /// Where a row is empty: it has no token whose state or prediction could be asked for.
    pub fn new<R: AsRef<[u32]>>(rows: impl IntoIterator<Item = R>) -> Result<Self, EmptyRow> {
        let (mut tokens, mut starts) = (Vec::new(), vec![0]);
        for row in rows {
            if row.as_ref().is_empty() {
                return Err(EmptyRow(starts.len() - 1));
            }
            tokens.extend_from_slice(row.as_ref());
            starts.push(tokens.len());
        }
        Ok(Self { tokens, starts })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All tokens, row after row.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Where row `i` lies among the tokens.
    pub fn range(&self, i: usize) -> Range<usize> {
        self.starts[i]..self.starts[i + 1]
    }

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

/// The rows of one pass: their tokens follow each other and together are all N.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows(Vec<Row>);

impl Rows {
    /// Rows by their number of tokens, their index and the position of their first token.
    pub(crate) fn new(rows: impl IntoIterator<Item = (usize, usize, usize)>) -> Self {
        let mut from = 0;
        let rows = rows.into_iter().map(|(tokens, index, start)| {
            let row = Row { index, tokens: from..from + tokens, start };
            from = row.tokens.end;
            row
        });
        Self(rows.collect())
    }

    /// The rows of a batch, each from its own beginning.
    pub fn of(batch: &Batch) -> Self {
        Self::new((0..batch.len()).map(|i| (batch.range(i).len(), i, 0)))
    }

    /// `count` rows of `tokens` tokens each.
    pub(crate) fn equal(count: usize, tokens: usize) -> Self {
        Self::new((0..count).map(|i| (tokens, i, 0)))
    }

    /// One of the rows alone, its tokens where they are.
    pub(crate) fn only(row: &Row) -> Self {
        Self(vec![row.clone()])
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Row> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> usize {
        self.0.last().map_or(0, |row| row.tokens.end)
    }

    /// Each token's position in its row, N of them.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.0.iter().flat_map(|row| row.start..row.start + row.tokens.len())
    }

    /// The last token of each row, as an index into the N.
    pub fn last(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|row| row.tokens.end - 1)
    }
}
