//! What a model keeps of the tokens it has seen, so that rows can go on without seeing them again.
//!
//! Every layer with attention has one slab of keys and one of values, (M, G, D): first what several rows share, then as much room for
//! every row. Rows may be of any length, leave, be cut back to an earlier length, or branch from a common beginning.

use super::{
    batch::{Batch, Rows},
    mamba2::State,
};
use candle_core::{DType, Device, Result, Tensor};
use std::{collections::BTreeMap, ops::Range};
use taskvec_kernels::Span;

/// Tokens of room that a row gets beyond what it needs when it first comes.
const ROOM: usize = 32;

/// Not `Clone`: slabs are written in place. [`Cache::branch`] makes an independent one.
pub struct Cache {
    rows: Vec<CachedRow>,
    /// Tokens at the beginning of every slab that are prefixes of rows.
    shared: usize,
    /// Tokens of room for each row.
    capacity: usize,
    layers: Vec<LayerState>,
}

/// What one layer keeps.
pub(crate) enum LayerState {
    Attention(Keys),
    Recurrent(Recurrent),
}

/// The states of one layer's rows.
pub(crate) struct Recurrent {
    /// Whose they are, in their order: the slots of rows.
    slots: Vec<usize>,
    state: State,
    /// Those after the tokens of a pass that is not through.
    next: Option<State>,
}

/// Slabs of one layer's keys and values, both (M, G, D).
pub(crate) struct Keys {
    k: Tensor,
    v: Tensor,
}

#[derive(Clone, Debug)]
struct CachedRow {
    /// Its place in the batch as it was first given.
    index: usize,
    /// Which of the rooms is its own.
    slot: usize,
    /// Its beginning, within the shared part.
    prefix: Range<usize>,
    /// Tokens in its own room.
    own: usize,
}

impl CachedRow {
    fn len(&self) -> usize {
        self.prefix.len() + self.own
    }
}

impl Cache {
    /// An empty cache for `rows` rows.
    pub(crate) fn new(rows: usize, layers: Vec<LayerState>) -> Self {
        let rows = (0..rows).map(|i| CachedRow { index: i, slot: i, prefix: 0..0, own: 0 }).collect();
        Self { rows, shared: 0, capacity: 0, layers }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Tokens that are kept of a row.
    pub fn len(&self, row: usize) -> usize {
        self.rows[row].len()
    }

    pub(crate) fn layers_mut(&mut self) -> &mut [LayerState] {
        &mut self.layers
    }

    /// A cache whose row i goes on after all that is kept of row `parents[i]` of this one. What they have in common is kept
    /// once, however many rows there are.
    ///
    /// # Errors
    /// Tensor errors.
    pub fn branch(&self, parents: &[usize]) -> Result<Self> {
        let mut places: BTreeMap<usize, Range<usize>> = BTreeMap::new();
        let mut shared = 0;
        for &parent in parents {
            places.entry(parent).or_insert_with(|| {
                let from = shared;
                shared += self.rows[parent].len();
                from..shared
            });
        }
        let moves: Vec<Move> =
            places.iter().flat_map(|(&parent, place)| self.moves(&self.rows[parent], place.start)).collect();
        let slots: Vec<usize> = parents.iter().map(|&parent| self.rows[parent].slot).collect();
        let layers = self.layers.iter().map(|layer| layer.moved(&moves, shared, &slots)).collect::<Result<_>>()?;
        let row = |(i, parent)| CachedRow { index: i, slot: i, prefix: places[parent].clone(), own: 0 };
        Ok(Self { rows: parents.iter().enumerate().map(row).collect(), shared, capacity: 0, layers })
    }

    /// Forgets all of a row but its first `len` tokens, so that it can be continued in another way.
    ///
    /// # Errors
    /// Where the row has fewer tokens, or shares more with others, or where the model keeps states, which have no way back.
    pub fn truncate(&mut self, row: usize, len: usize) -> Result<()> {
        let row = &mut self.rows[row];
        if len != row.len() && self.layers.iter().any(|layer| matches!(layer, LayerState::Recurrent(_))) {
            candle_core::bail!("a row of {} tokens cannot be cut back to {len}: its state has no way back", row.len());
        }
        if len > row.len() || len < row.prefix.len() {
            candle_core::bail!(
                "a row of {} tokens, {} of them shared, cannot be cut back to {len}",
                row.len(),
                row.prefix.len()
            );
        }
        row.own = len - row.prefix.len();
        Ok(())
    }

    /// Only these rows stay, in this order; each keeps its index. Nothing is copied.
    pub fn retain(&mut self, rows: &[usize]) {
        self.rows = rows.iter().map(|&i| self.rows[i].clone()).collect();
    }

    /// The rows of a pass over `batch`, and where their keys will lie once it is through.
    ///
    /// # Errors
    /// Where the batch has another number of rows; tensor errors.
    pub(crate) fn prepare(&mut self, batch: &Batch) -> Result<(Rows, Vec<Span>)> {
        if batch.len() != self.rows.len() {
            candle_core::bail!("a batch of {} rows goes on in a cache of {}", batch.len(), self.rows.len());
        }
        let rows = Rows::following(batch, self.rows.iter().map(|row| (row.index, row.len())));
        if rows.share() {
            self.begin_with(batch)?;
        }
        let needed = (self.rows.iter().zip(rows.iter())).map(|(kept, row)| kept.own + row.tokens.len());
        self.make_room(needed.max().unwrap_or(0))?;
        let slots: Vec<usize> = self.rows.iter().map(|row| row.slot).collect();
        for layer in &mut self.layers {
            if let LayerState::Recurrent(states) = layer {
                *states = states.arranged(&slots)?;
            }
        }
        let span = |(i, (kept, row)): (usize, (&CachedRow, &super::batch::Row))| {
            let from = self.room(kept.slot);
            let keys = from..from + kept.own + row.tokens.len();
            let prefix = if rows.share() { batch.beginning(i) } else { kept.prefix.clone() };
            Span { queries: row.tokens.clone(), prefix, keys }
        };
        let own = self.rows.iter().zip(rows.iter()).enumerate().map(span);
        let spans = batch.beginnings().map(Span::alone).chain(own).collect();
        Ok((rows, spans))
    }

    /// Makes place for what the rows of a batch share, which is where the batch has it: before everything else.
    fn begin_with(&mut self, batch: &Batch) -> Result<()> {
        if self.rows.iter().any(|row| row.len() > 0) {
            candle_core::bail!("rows that go on cannot share their beginnings");
        }
        (self.shared, self.capacity) = (batch.beginnings().map(|range| range.len()).sum(), 0);
        let slots: Vec<usize> = self.rows.iter().map(|row| row.slot).collect();
        self.layers = self.layers.iter().map(|l| l.moved(&[], self.shared, &slots)).collect::<Result<_>>()?;
        Ok(())
    }

    /// The pass of a batch over `rows` is through: its tokens are kept.
    pub(crate) fn keep(&mut self, batch: &Batch, rows: &Rows) {
        for (i, (kept, row)) in self.rows.iter_mut().zip(rows.iter()).enumerate() {
            kept.own += row.tokens.len();
            if rows.share() {
                kept.prefix = batch.beginning(i);
            }
        }
        for layer in &mut self.layers {
            if let LayerState::Recurrent(states) = layer {
                states.state = states.next.take().unwrap_or_else(|| states.state.clone());
            }
        }
    }

    /// Where a row's own room begins.
    fn room(&self, slot: usize) -> usize {
        self.shared + slot * self.capacity
    }

    /// Makes the slabs larger where a row needs more room than it has.
    fn make_room(&mut self, needed: usize) -> Result<()> {
        if needed <= self.capacity {
            return Ok(());
        }
        let capacity = if self.capacity == 0 { needed + ROOM } else { needed.max(2 * self.capacity) };
        let mut moves = vec![Move { from: 0..self.shared, to: 0 }];
        for (slot, row) in self.rows.iter().enumerate() {
            let from = self.room(row.slot);
            moves.push(Move { from: from..from + row.own, to: self.shared + slot * capacity });
        }
        let size = self.shared + self.rows.len() * capacity;
        let slots: Vec<usize> = self.rows.iter().map(|row| row.slot).collect();
        self.layers = self.layers.iter().map(|layer| layer.moved(&moves, size, &slots)).collect::<Result<_>>()?;
        self.rows.iter_mut().enumerate().for_each(|(slot, row)| row.slot = slot);
        self.capacity = capacity;
        Ok(())
    }

    /// Copies all of a row to `to`.
    fn moves(&self, row: &CachedRow, to: usize) -> [Move; 2] {
        let from = self.room(row.slot);
        let own = Move { from: from..from + row.own, to: to + row.prefix.len() };
        [Move { from: row.prefix.clone(), to }, own]
    }
}

/// Tokens that are copied from one slab to another.
struct Move {
    from: Range<usize>,
    to: usize,
}

impl LayerState {
    /// Slabs of `size` tokens with these parts of the old ones, and states of these slots, which are counted anew.
    fn moved(&self, moves: &[Move], size: usize, slots: &[usize]) -> Result<Self> {
        match self {
            Self::Recurrent(states) => Ok(Self::Recurrent(Recurrent::new(states.arranged(slots)?.state, slots.len()))),
            Self::Attention(Keys { k, v }) => {
                Ok(Self::Attention(Keys { k: moved(k, moves, size)?, v: moved(v, moves, size)? }))
            }
        }
    }
}

/// A new slab of `size` tokens with parts of another.
fn moved(slab: &Tensor, moves: &[Move], size: usize) -> Result<Tensor> {
    let (_, groups, head) = slab.dims3()?;
    let new = Tensor::zeros((size, groups, head), slab.dtype(), slab.device())?;
    for Move { from, to } in moves.iter().filter(|m| !m.from.is_empty()) {
        new.slice_set(&slab.narrow(0, from.start, from.len())?, 0, *to)?;
    }
    Ok(new)
}

impl Recurrent {
    /// The states of slots 0, 1, ….
    pub(crate) fn new(state: State, rows: usize) -> Self {
        Self { slots: (0..rows).collect(), state, next: None }
    }

    /// The states of these slots in this order.
    fn arranged(&self, slots: &[usize]) -> Result<Self> {
        if self.slots == slots {
            return Ok(Self { slots: self.slots.clone(), state: self.state.clone(), next: None });
        }
        let place = |slot| match self.slots.iter().position(|s| s == slot) {
            Some(place) => Ok(place as u32),
            None => candle_core::bail!("no state is kept for slot {slot}"),
        };
        let places = slots.iter().map(place).collect::<Result<Vec<_>>>()?;
        Ok(Self { slots: slots.to_vec(), state: self.state.select(&places)?, next: None })
    }

    /// Of each row of the pass, before its tokens.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// What the states become once the pass is through.
    pub(crate) fn advance(&mut self, next: State) {
        self.next = Some(next);
    }
}

impl Keys {
    /// Without any tokens yet; G groups of heads with D elements.
    pub(crate) fn new(groups: usize, head: usize, dtype: DType, device: &Device) -> Result<Self> {
        let empty = Tensor::zeros((0, groups, head), dtype, device)?;
        Ok(Self { k: empty.clone(), v: empty })
    }

    /// Writes the keys and values of a pass, (N, G, D), where `spans` say; gives all of them, (M, G, D).
    pub(crate) fn append(&mut self, spans: &[Span], k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        for span in spans {
            let tokens = span.queries.len();
            for (slab, new) in [(&self.k, k), (&self.v, v)] {
                let part = new.narrow(0, span.queries.start, tokens)?.contiguous()?;
                slab.slice_set(&part, 0, span.keys.end - tokens)?;
            }
        }
        Ok((self.k.clone(), self.v.clone()))
    }
}
