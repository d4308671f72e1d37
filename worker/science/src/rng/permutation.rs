//! Random orders that need no memory.

use super::Stream;

/// Rounds of the network. Four of ideal functions already pass for random (Luby & Rackoff 1988).
const ROUNDS: u64 = 6;
/// Bits of a half, at least. The orders of a few numbers are as good as those of many among which they are found: with
/// halves of one or two bits there are too few networks, and some orders come more often than others.
const FEWEST_BITS: u32 = 4;

/// Number `place` of the numbers 0 … n − 1 in the random order of a stream; n is from 1 to 2^62.
///
/// A Feistel network, whose functions are words of the stream, permutes the numbers of an even count of bits; one that is not
/// below n is permuted again until it is (cycle walking, Black & Rogaway 2002). Of a stream it uses the indices 0 to 5.
pub fn permuted(stream: Stream, n: u64, place: u64) -> u64 {
    debug_assert!(place < n && n <= 1 << 62, "place {place} of {n}");
    let bits = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2).max(FEWEST_BITS);
    let mask = (1u64 << bits) - 1;
    let mut number = place;
    loop {
        let (mut left, mut right) = (number >> bits, number & mask);
        for round in 0..ROUNDS {
            let mut word = [0];
            // A half has at most 31 bits.
            stream.at(round).after(right as u32).words(&mut word);
            (left, right) = (right, left ^ (u64::from(word[0]) & mask));
        }
        number = left << bits | right;
        if number < n {
            return number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn stream(seed: u64, step: u64) -> Stream {
        Stream { seed, purpose: Purpose::Examples, step }
    }

    fn order(stream: Stream, n: u64) -> Vec<u64> {
        (0..n).map(|place| permuted(stream, n, place)).collect()
    }

    /// Pearson's statistic of counts that should all be equal.
    fn chi2<'a>(counts: impl Iterator<Item = &'a u32> + Clone) -> f64 {
        let cells = counts.clone().count() as f64;
        let mean = f64::from(counts.clone().sum::<u32>()) / cells;
        counts.map(|&c| (f64::from(c) - mean).powi(2) / mean).sum()
    }

    #[test]
    fn every_number_comes_once() {
        for n in (1..=100).chain([255, 256, 257, 4095, 4097, 10_000]) {
            let mut seen = order(stream(5, n), n);
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..n), "{n}");
        }
    }

    /// All 120 orders of five numbers, over the seeds and over the rounds of one seed.
    #[test]
    fn every_order_comes_equally_often() {
        for by_seed in [true, false] {
            let mut counts = std::collections::BTreeMap::new();
            for i in 0..24_000 {
                let stream = if by_seed { stream(i, 0) } else { stream(5, i) };
                *counts.entry(order(stream, 5)).or_insert(0u32) += 1;
            }
            assert_eq!(counts.len(), 120);
            let found = chi2(counts.values());
            // scipy.stats.chi2.ppf and isf at 1e-4 of 119 degrees of freedom: too even would be no chance either.
            assert!((69.97..185.09).contains(&found), "{found}");
        }
    }

    /// Where a number comes, and what comes after it, where the network's halves are full and where they are not.
    #[test]
    fn every_number_comes_equally_often_to_every_place_and_after_every_other() {
        for n in [17usize, 40, 64] {
            let (mut places, mut pairs) = (vec![0u32; n * n], vec![0u32; n * n]);
            let rounds = 6000;
            for i in 0..rounds {
                let order = order(stream(i, 3), n as u64);
                order.iter().enumerate().for_each(|(place, &number)| places[place * n + number as usize] += 1);
                pairs[order[0] as usize * n + order[1] as usize] += 1;
            }
            // The counts of a place sum to the rounds, and so do those of a number: the statistic times (n − 1) / n has
            // (n − 1)² degrees of freedom. That of the first pair has n (n − 1) − 1, since no number follows itself.
            let of_places = chi2(places.iter()) * (n - 1) as f64 / n as f64;
            let of_pairs = chi2(pairs.iter().enumerate().filter(|(i, _)| i / n != i % n).map(|(_, count)| count));
            for (what, found, freedom) in
                [("places", of_places, (n - 1) * (n - 1)), ("pairs", of_pairs, n * (n - 1) - 1)]
            {
                let deviations = (found - freedom as f64) / (2.0 * freedom as f64).sqrt();
                assert!(deviations.abs() < 4.5, "{what} of {n}: {found} with {freedom} degrees of freedom");
            }
        }
    }

    /// The first numbers, as Python makes them of the same definition and Random123's Philox. A change here changes every
    /// fine-tuning ever computed.
    #[test]
    fn the_order_never_changes() {
        let first = |n: u64| (0..6).map(|place| permuted(stream(5, 2), n, place)).collect::<Vec<_>>();
        assert_eq!(first(10), [9, 5, 2, 7, 8, 4]);
        assert_eq!(first(1000), [568, 858, 437, 655, 490, 36]);
        let large =
            [780_373_755_169, 1_076_431_945_848, 769_196_098_267, 1_074_398_932_100, 675_843_555_224, 433_160_896_369];
        assert_eq!(first(1 << 40), large);
    }
}
