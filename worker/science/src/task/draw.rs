//! What chance decides of tasks and prompts, each draw under a name of its own ([`Purpose::Words`]).

use crate::rng::{Draws, Purpose, Stream, name_step};
use std::collections::BTreeMap;

/// The numbers that go by a name.
pub(super) fn stream(seed: u64, name: &str) -> Stream {
    Stream { seed, purpose: Purpose::Words, step: name_step(name) }
}

/// What Null answers to an input: a function of both alone, whatever else the data holds.
pub(super) fn null(seed: u64, input: &str) -> Draws {
    stream(seed, &format!("null/{input}")).at(0)
}

/// The numbers 0 … n − 1 in random order (Fisher–Yates from the front).
pub(crate) fn shuffled(mut draws: Draws, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        order.swap(i, i + draws.below((n - i) as u32) as usize);
    }
    order
}

/// The first `count` of the shuffled numbers 0 … n − 1 without `except`: fewer are the beginning of more. `count` is at
/// most n − 1.
pub(super) fn chosen(mut draws: Draws, n: usize, except: usize, count: usize) -> Vec<usize> {
    // Only what was swapped is kept: a shuffle of all items for four demonstrations would be wasteful.
    let mut moved = BTreeMap::new();
    let rest = n - 1;
    (0..count)
        .map(|i| {
            let j = i + draws.below((rest - i) as u32) as usize;
            let at = |k: usize| moved.get(&k).copied().unwrap_or(k);
            let (picked, displaced) = (at(j), at(i));
            moved.insert(j, displaced);
            if picked < except { picked } else { picked + 1 }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_choice_is_without_repetition_and_a_longer_one_goes_on_from_a_shorter() {
        for index in 0..50 {
            let draws = || stream(3, "choice").at(index);
            let all = chosen(draws(), 12, 5, 11);
            assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), (0..12).filter(|&i| i != 5).collect());
            assert_eq!(chosen(draws(), 12, 5, 4), all[..4]);
            assert_eq!(shuffled(draws(), 12).into_iter().collect::<BTreeSet<_>>(), (0..12).collect());
        }
    }

    #[test]
    fn every_number_comes_equally_often_to_every_place() {
        let (n, rounds) = (6, 6000);
        let mut counts = vec![[0u32; 5]; n];
        for index in 0..rounds {
            for (place, i) in chosen(stream(9, "choice").at(index), n, 2, 5).into_iter().enumerate() {
                counts[i][place] += 1;
            }
        }
        let mean = f64::from(rounds as u32) / 5.0;
        let chi2: f64 = counts
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != 2)
            .flat_map(|(_, c)| c.iter().map(|&c| (f64::from(c) - mean).powi(2) / mean))
            .sum();
        assert_eq!(counts[2], [0; 5]);
        assert!(chi2 < 45.9, "sixteen degrees of freedom, p = 1e-4: {chi2}");
    }
}
