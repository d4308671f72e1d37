//! Which items are for training and which for evaluation.
//!
//! The split belongs to the data, not to a seed: models fine-tuned under different seeds are evaluated on the same items,
//! none of which any of them has seen. Of n different inputs a fifth, rounded to the nearest whole number, are test items:
//! those whose BLAKE3 hashes are smallest. A hash does not depend on the order of the file, and tasks that share their
//! inputs share their split.

/// Test items per hundred inputs: the paper's 80/20.
const TEST_PERCENT: usize = 20;

/// The two parts of a task's items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// For fine-tuning.
    Train,
    /// For every analysis, demonstrations included.
    Test,
}

impl Split {
    pub(super) fn of(test: bool) -> Self {
        if test { Self::Test } else { Self::Train }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// For every key, whether it is a test item; `most` limits their number. Equal keys fall on the same side, for which the
/// number may be exceeded.
pub(super) fn test_members<K: AsRef<[u8]>>(keys: &[K], most: usize) -> Vec<bool> {
    let wanted = ((keys.len() * TEST_PERCENT + 50) / 100).min(most);
    let mut order: Vec<([u8; 32], usize)> =
        keys.iter().enumerate().map(|(i, key)| (*blake3::hash(key.as_ref()).as_bytes(), i)).collect();
    order.sort_unstable();
    let last = wanted.checked_sub(1).map(|i| order[i].0);
    let mut member = vec![false; keys.len()];
    for (_, i) in order.iter().take_while(|(hash, _)| last.is_some_and(|l| *hash <= l)) {
        member[*i] = true;
    }
    member
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_is_for_the_test_whatever_the_order() {
        let keys: Vec<String> = (0..103).map(|i| format!("sentence {i}")).collect();
        let member = test_members(&keys, usize::MAX);
        assert_eq!(member.iter().filter(|&&m| m).count(), 21);
        let reversed: Vec<&String> = keys.iter().rev().collect();
        let mut again = test_members(&reversed, usize::MAX);
        again.reverse();
        assert_eq!(member, again);
        assert_eq!(test_members(&keys, 7).iter().filter(|&&m| m).count(), 7);
        assert_eq!(test_members(&keys[..2], usize::MAX), [false, false]);
    }

    #[test]
    fn equal_keys_are_never_parted() {
        let keys: Vec<String> = (0..60).map(|i| format!("pair {}", i / 3)).collect();
        let member = test_members(&keys, usize::MAX);
        assert!(member.chunks(3).all(|c| c.iter().all(|m| m == &c[0])));
        assert!((12..15).contains(&member.iter().filter(|&&m| m).count()));
    }
}
