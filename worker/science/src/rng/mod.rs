//! Counter-based random numbers: a draw is a function of (seed, purpose, step, index, position) and of nothing else.
//!
//! Whoever computes the batch of a step, in whatever order and on whatever machine, gets the same bits. The generator is
//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Its counter is laid out as
//!
//! | word | holds |
//! | --- | --- |
//! | 0 | block within the stream of one index |
//! | 1 | index (of a sequence in its batch) |
//! | 2 | low 32 bits of step |
//! | 3 | purpose << 24, high 24 bits of step |
//!
//! and its key is the seed. A block gives two 64-bit words, from which a uniform, or two normals, are made in f64 with
//! correctly rounded operations only (see [`normal_pair`]), so that another implementation can match them bit for bit.

mod normal;
mod permutation;
mod philox;

pub use normal::normal_pair;
pub use permutation::permuted;
pub use philox::philox4x32_10;

/// What the numbers are for. The values are part of every result: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Initial weights; `step` is [`name_step`] of the parameter.
    Init = 0,
    /// Training batches; `step` is the update, from 1.
    Train = 1,
    /// Held-out sequences of ICL performance and the baselines.
    Evaluate = 2,
    /// Sequences whose hidden states are classified.
    Td = 3,
    /// The query that site `s` gives to every sequence.
    Query = 4,
    /// Tasks in words: what Null answers, and which items a prompt is made of; `step` is [`name_step`] of what is drawn.
    Words = 5,
    /// Sequences of interventions in synthetic models.
    Intervene = 6,
    /// Initial adapters; `step` is [`name_step`] of the parameter, the index its row.
    Adapters = 7,
    /// Which inputs of adapters are dropped in training; `step` is the update (below 2^32) and the number of the module in
    /// the model (below 2^24), the index the row of the batch.
    Dropout = 8,
    /// The order in which fine-tuning sees its examples; `step` is the round.
    Examples = 9,
}

/// All numbers of one batch (or of one parameter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub seed: u64,
    pub purpose: Purpose,
    /// Below 2^56.
    pub step: u64,
}

impl Stream {
    /// The numbers of one index (below 2^32), from the first block on.
    pub fn at(self, index: u64) -> Draws {
        debug_assert!(self.step < 1 << 56 && index < 1 << 32);
        let step_and_purpose = (self.purpose as u32) << 24 | (self.step >> 32) as u32;
        Draws {
            key: [self.seed as u32, (self.seed >> 32) as u32],
            counter: [0, index as u32, self.step as u32, step_and_purpose],
        }
    }
}

/// The successive blocks of one index. Every call takes whole blocks, so that a position is easy to compute elsewhere.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u32; 2],
    counter: [u32; 4],
}

impl Draws {
    fn block(&mut self) -> [u64; 2] {
        let [a, b, c, d] = philox4x32_10(self.counter, self.key);
        self.counter[0] = self.counter[0].wrapping_add(1);
        [u64::from(a) | u64::from(b) << 32, u64::from(c) | u64::from(d) << 32]
    }

    /// Uniform in 0 … n − 1 (one block; the bias is below n / 2^64).
    pub fn below(&mut self, n: u32) -> u32 {
        let [word, _] = self.block();
        ((u128::from(word) * u128::from(n)) >> 64) as u32
    }

    /// Uniform in [0, 1) with 53 bits (one block).
    pub fn uniform(&mut self) -> f64 {
        let [word, _] = self.block();
        unit(word)
    }

    /// Uniform 32-bit words, four from each block.
    pub fn words(&mut self, out: &mut [u32]) {
        for four in out.chunks_mut(4) {
            let [a, b] = self.block();
            let words = [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32];
            four.copy_from_slice(&words[..four.len()]);
        }
    }

    /// The same numbers without those of the next `count` blocks.
    pub fn after(mut self, count: u32) -> Self {
        self.counter[0] = self.counter[0].wrapping_add(count);
        self
    }

    /// Two independent standard normals (one block).
    pub fn normal_pair(&mut self) -> [f64; 2] {
        let [a, b] = self.block();
        normal_pair(1.0 - unit(a), unit(b))
    }

    /// Independent standard normals; number `i` comes from block `i / 2`.
    pub fn normals(&mut self, out: &mut [f64]) {
        for pair in out.chunks_mut(2) {
            pair.copy_from_slice(&self.normal_pair()[..pair.len()]);
        }
    }
}

/// The upper 53 bits as a number in [0, 1).
fn unit(word: u64) -> f64 {
    (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The step of an initialisation stream: a 56-bit hash (FNV-1a, folded) of the parameter's name, so that the values of
/// one parameter do not depend on which others there are.
pub fn name_step(name: &str) -> u64 {
    let hash =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash >> 56) ^ (hash & ((1 << 56) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream { seed: 7, purpose: Purpose::Train, step: 3 };

    fn sample(n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n];
        STREAM.at(0).normals(&mut out);
        out
    }

    #[test]
    fn any_part_of_the_address_changes_the_numbers() {
        let first = |stream: Stream, index| stream.at(index).uniform().to_bits();
        let mut seen = std::collections::BTreeSet::new();
        for purpose in [
            Purpose::Init,
            Purpose::Train,
            Purpose::Evaluate,
            Purpose::Td,
            Purpose::Query,
            Purpose::Words,
            Purpose::Intervene,
            Purpose::Adapters,
            Purpose::Dropout,
            Purpose::Examples,
        ] {
            for seed in [0, 1, 1 << 32, u64::MAX] {
                for step in [0, 1, 1 << 32, (1 << 56) - 1] {
                    for index in [0, 1, u64::from(u32::MAX)] {
                        assert!(seen.insert(first(Stream { seed, purpose, step }, index)));
                    }
                }
            }
        }
    }

    #[test]
    fn normals_have_the_moments_and_tails_of_a_normal() {
        let n = 400_000;
        let x = sample(n);
        let moment = |p: i32| x.iter().map(|v| v.powi(p)).sum::<f64>() / n as f64;
        // Five standard errors of each moment: var(x^p) = E x^2p − (E x^p)².
        for (p, want, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = (moment(p) - want).abs();
            assert!(error < 5.0 * (variance / n as f64).sqrt(), "moment {p} off by {error}");
        }
        for (bound, tail) in [(1.0, 0.317_310_5), (2.0, 0.045_500_3), (3.0, 0.002_699_8)] {
            let share = x.iter().filter(|v| v.abs() > bound).count() as f64 / n as f64;
            assert!((share - tail).abs() < 5.0 * (tail / n as f64).sqrt(), "P(|x| > {bound}) = {share}");
        }
    }

    #[test]
    fn normals_are_uncorrelated_within_and_across_indices() {
        let n = 100_000;
        let x = sample(n + 2);
        let mut y = vec![0.0; n];
        STREAM.at(1).normals(&mut y);
        let limit = 5.0 / (n as f64).sqrt();
        for lag in [1, 2] {
            let r = (0..n).map(|i| x[i] * x[i + lag]).sum::<f64>() / n as f64;
            assert!(r.abs() < limit, "lag {lag}: {r}");
        }
        let r = x.iter().zip(&y).map(|(a, b)| a * b).sum::<f64>() / n as f64;
        assert!(r.abs() < limit, "between indices: {r}");
        // Box-Muller pairs share a radius: their squares must be uncorrelated too.
        let r = (0..n / 2).map(|i| (x[2 * i].powi(2) - 1.0) * (x[2 * i + 1].powi(2) - 1.0)).sum::<f64>();
        assert!((r / (n / 2) as f64).abs() < 5.0 * 2.0 / ((n / 2) as f64).sqrt(), "squares of a pair: {r}");
    }

    #[test]
    fn words_are_the_same_wherever_one_begins() {
        let mut all = [0; 41];
        STREAM.at(3).words(&mut all);
        for from in [0, 1, 7] {
            let mut rest = [0; 13];
            STREAM.at(3).after(from).words(&mut rest);
            assert_eq!(rest, all[4 * from as usize..][..13]);
        }
        let ones: u32 = all.iter().map(|w| w.count_ones()).sum();
        assert!((ones as f64 - 656.0).abs() < 4.0 * 328f64.sqrt(), "half of 1312 bits: {ones}");
    }

    #[test]
    fn below_and_uniform_are_flat() {
        let n = 70_000;
        let (mut faces, mut tenths) = ([0u32; 7], [0u32; 10]);
        let mut draws = STREAM.at(5);
        for _ in 0..n {
            faces[draws.below(7) as usize] += 1;
            tenths[(draws.uniform() * 10.0) as usize] += 1;
        }
        let chi2 = |counts: &[u32]| {
            let mean = f64::from(n) / counts.len() as f64;
            counts.iter().map(|&c| (f64::from(c) - mean).powi(2) / mean).sum::<f64>()
        };
        assert!(chi2(&faces) < 27.9, "six degrees of freedom, p = 1e-4: {faces:?}");
        assert!(chi2(&tenths) < 33.7, "nine degrees of freedom, p = 1e-4: {tenths:?}");
    }

    /// The first numbers, within 3e-16 of what Python's math module makes of the same counters (-0.466011, 1.132882,
    /// -0.437573, -0.729298). A change here changes every result ever computed.
    #[test]
    fn the_numbers_never_change() {
        let bits: Vec<u64> = sample(4).iter().map(|v| v.to_bits()).collect();
        assert_eq!(
            bits,
            [
                13_825_438_562_937_784_317,
                4_607_780_866_022_494_710,
                13_824_926_271_958_479_208,
                13_828_116_184_464_237_709
            ]
        );
        assert_eq!(name_step("wpe.weight"), 3_885_078_253_703_671);
    }
}
