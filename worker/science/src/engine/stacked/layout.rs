//! Where the parameters of a run lie: as on the CPU in the model's order, but each begins where vectors and tensor cores
//! like it, and so does every run. What lies between them is zero and stays zero.

use crate::model::{Parameters, Sizes};
use std::convert::Infallible;
use taskvec_kernels::cuda::program::ALIGNMENT;

/// Of one parameter in its run, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub offset: usize,
    pub len: usize,
}

pub(super) struct Layout {
    slots: Vec<Slot>,
    /// From run to run, in elements.
    pub stride: usize,
}

impl Layout {
    pub fn new(sizes: Sizes) -> (Self, Parameters<Slot>) {
        let (mut slots, mut end) = (Vec::new(), 0);
        let Ok(named) = Parameters::build(sizes, |_, shape| {
            let slot = Slot { offset: end, len: shape.iter().product() };
            end += slot.len.next_multiple_of(ALIGNMENT / size_of::<f32>());
            slots.push(slot);
            Ok::<_, Infallible>(slot)
        });
        (Self { slots, stride: end }, named)
    }

    /// Parameters of a run.
    pub fn count(&self) -> usize {
        self.slots.iter().map(|slot| slot.len).sum()
    }

    /// From one after the other to their places.
    pub fn spread(&self, mut dense: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.stride];
        for slot in &self.slots {
            let (values, rest) = dense.split_at(slot.len);
            out[slot.offset..slot.offset + slot.len].copy_from_slice(values);
            dense = rest;
        }
        out
    }

    /// The opposite.
    pub fn gathered(&self, places: &[f32]) -> Vec<f32> {
        self.slots.iter().flat_map(|slot| &places[slot.offset..slot.offset + slot.len]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_begin_where_they_should_and_come_back() {
        let sizes = Sizes { layers: 2, width: 6, heads: 2, positions: 4, channels: 3 };
        let (layout, named) = Layout::new(sizes);
        assert!(layout.slots.iter().all(|slot| slot.offset % 64 == 0) && layout.stride % 64 == 0);
        assert!(layout.slots.windows(2).all(|pair| pair[0].offset + pair[0].len <= pair[1].offset));
        assert_eq!(named.blocks[1].c_fc.weight.len, 6 * 24);
        let dense: Vec<f32> = (0..layout.count()).map(|i| i as f32 + 1.0).collect();
        let places = layout.spread(&dense);
        assert_eq!(places.iter().filter(|&&x| x != 0.0).count(), dense.len());
        assert_eq!(layout.gathered(&places), dense);
    }
}
