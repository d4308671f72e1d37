//! Where the parts of a model lie when one device is too small for all of it.
//!
//! Blocks stay in order, and each device takes as many as it has room for before the next one gets any: a pass then goes
//! from device to device once, with the residual stream of its tokens and nothing else.

use super::LoadError;
use candle_core::{Device, DeviceLocation};
use std::path::Path;
#[cfg(feature = "candle-cuda")]
use taskvec_kernels::cuda::tensors;

/// Memory, in bytes, that the parts of a model take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Token embedding and learned positions.
    pub embedding: u64,
    pub blocks: Vec<u64>,
    /// Final norm and unembedding. Tied to the embedding, it lies with it and takes the norm's room only.
    pub unembedding: u64,
    pub tied: bool,
}

impl Parts {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.embedding + self.blocks.iter().sum::<u64>() + self.unembedding
    }
}

/// A device, and how many bytes of weights it may take.
#[derive(Clone, Debug)]
pub struct Room {
    pub device: Device,
    pub bytes: u64,
}

impl Room {
    /// The machine's memory that is free now, where the system tells; else no limit is known.
    pub fn cpu() -> Self {
        let told = std::fs::read_to_string("/proc/meminfo").ok();
        Self { device: Device::Cpu, bytes: told.as_deref().and_then(available).unwrap_or(u64::MAX) }
    }

    /// The memory of GPU number `ordinal` that is free now.
    ///
    /// # Errors
    /// No driver, no such GPU.
    #[cfg(feature = "candle-cuda")]
    pub fn gpu(ordinal: usize) -> candle_core::Result<Self> {
        let device = tensors::device(ordinal)?;
        Ok(Self { bytes: tensors::free_bytes(&device)?, device })
    }
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The device of each part.
#[derive(Clone, Debug)]
pub(super) struct Placing {
    pub embedding: Device,
    pub blocks: Vec<Device>,
    pub unembedding: Device,
}

impl Placing {
    /// # Errors
    /// [`LoadError::NoRoom`] where the parts do not fit, in this order.
    pub fn new(path: &Path, parts: &Parts, rooms: &[Room]) -> Result<Self, LoadError> {
        let bytes: Vec<u64> = rooms.iter().map(|room| room.bytes).collect();
        let Some(places) = spread(parts, &bytes) else {
            let rooms = rooms.iter().map(|room| (name(&room.device), room.bytes)).collect();
            return Err(LoadError::NoRoom { path: path.to_owned(), needed: parts.bytes(), rooms });
        };
        let device = |place: usize| rooms[place].device.clone();
        Ok(Self {
            embedding: device(places.embedding),
            blocks: places.blocks.into_iter().map(device).collect(),
            unembedding: device(places.unembedding),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Places {
    embedding: usize,
    blocks: Vec<usize>,
    unembedding: usize,
}

/// Which room each part goes to: never one before that of the part before it. If any such choice fits, this one does,
/// since it leaves the most room for what comes after.
fn spread(parts: &Parts, rooms: &[u64]) -> Option<Places> {
    let (mut place, mut left) = (0, *rooms.first()?);
    let mut put = |bytes: u64| loop {
        match left.checked_sub(bytes) {
            Some(rest) => {
                left = rest;
                return Some(place);
            }
            None => {
                place += 1;
                left = *rooms.get(place)?;
            }
        }
    };
    let embedding = put(if parts.tied { parts.embedding + parts.unembedding } else { parts.embedding })?;
    let blocks = parts.blocks.iter().map(|bytes| put(*bytes)).collect::<Option<_>>()?;
    let unembedding = if parts.tied { embedding } else { put(parts.unembedding)? };
    Some(Places { embedding, blocks, unembedding })
}

fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(embedding: u64, blocks: &[u64], unembedding: u64, tied: bool) -> Parts {
        Parts { embedding, blocks: blocks.to_vec(), unembedding, tied }
    }

    /// Llama-3.1-70B in bf16, in GB, on two devices of 80 with some room left for activations.
    #[test]
    fn seventy_billion_parameters_lie_on_two_devices() {
        let llama = parts(2_101, &[1_711; 80], 2_101, false);
        let places = spread(&llama, &[72_000, 72_000]).unwrap();
        assert_eq!(places.blocks.iter().filter(|place| **place == 0).count(), 40);
        assert_eq!((places.embedding, places.unembedding), (0, 1));
        assert_eq!(spread(&llama, &[72_000]), None);
    }

    #[test]
    fn a_tied_unembedding_lies_with_the_embedding() {
        let places = spread(&parts(5, &[4, 4, 4], 1, true), &[10, 8]).unwrap();
        assert_eq!(places, Places { embedding: 0, blocks: vec![0, 1, 1], unembedding: 0 });
    }

    #[test]
    fn memory_is_read_from_what_the_system_says() {
        assert_eq!(available("MemTotal:  100 kB\nMemAvailable:   24 kB\n"), Some(24 * 1024));
        assert_eq!(available("MemTotal:  100 kB\n"), None);
    }

    /// Does any choice in order fit? Tries them all.
    fn fits(parts: &[u64], rooms: &[u64]) -> bool {
        match (parts, rooms) {
            ([], _) => true,
            (_, []) => false,
            ([part, rest @ ..], [room, others @ ..]) => {
                let here = room.checked_sub(*part).is_some_and(|left| {
                    let rooms: Vec<u64> = std::iter::once(left).chain(others.iter().copied()).collect();
                    fits(rest, &rooms)
                });
                here || fits(parts, others)
            }
        }
    }

    proptest! {
        #[test]
        fn a_place_is_found_whenever_there_is_one(
            embedding in 0_u64..8,
            blocks in prop::collection::vec(0_u64..8, 0..6),
            unembedding in 0_u64..8,
            rooms in prop::collection::vec(0_u64..20, 1..4),
        ) {
            let parts = parts(embedding, &blocks, unembedding, false);
            let all: Vec<u64> = [vec![embedding], blocks, vec![unembedding]].concat();
            let found = spread(&parts, &rooms);
            prop_assert_eq!(found.is_some(), fits(&all, &rooms));
            if let Some(places) = found {
                let order = [vec![places.embedding], places.blocks, vec![places.unembedding]].concat();
                prop_assert!(order.is_sorted());
                for (room, bytes) in rooms.iter().enumerate() {
                    let held = order.iter().zip(&all).filter(|(place, _)| **place == room);
                    prop_assert!(held.map(|(_, bytes)| bytes).sum::<u64>() <= *bytes);
                }
            }
        }
    }
}
