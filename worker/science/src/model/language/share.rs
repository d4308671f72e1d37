//! Which rows should share what they begin with.

/// Groups of rows that begin alike, and how many tokens those of each share, so that as many tokens as possible are there
/// once instead of once for each row. Rows that share nothing are in no group. One group for each row: beginnings of
/// beginnings would save little more.
pub(super) fn groups(rows: &[&[u32]]) -> Vec<(Vec<usize>, usize)> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&row| rows[row]);
    // What the sorted row has in common with the one before it.
    let common: Vec<usize> = (1..order.len()).map(|i| alike(rows[order[i - 1]], rows[order[i]])).collect();
    // The most that is saved among the first rows, and where the last group then begins.
    let mut best = vec![(0, 0)];
    for end in 1..=order.len() {
        let mut here = (best[end - 1].0, end - 1);
        let mut shared = usize::MAX;
        for first in (0..end - 1).rev() {
            shared = shared.min(common[first]);
            if shared == 0 {
                break;
            }
            let saved = best[first].0 + (end - 1 - first) * shared;
            if saved > here.0 {
                here = (saved, first);
            }
        }
        best.push(here);
    }
    let mut groups = Vec::new();
    let mut end = order.len();
    while end > 0 {
        let first = best[end].1;
        if end - first > 1 {
            let shared = common[first..end - 1].iter().copied().min().unwrap_or(0);
            groups.push((order[first..end].to_vec(), shared));
        }
        end = first;
    }
    groups.reverse();
    groups
}

fn alike(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_save_the_most() {
        let rows: [&[u32]; 6] = [&[1, 2, 3, 4], &[5], &[1, 2, 3, 9], &[1, 7], &[6, 1], &[1, 2, 3, 4]];
        // Three tokens for two of three rows; the fourth would leave one token for all.
        assert_eq!(groups(&rows), [(vec![0, 5, 2], 3)]);
        let two: [&[u32]; 4] = [&[1, 1, 1], &[1, 2, 2], &[1, 2, 2], &[1, 1, 1]];
        assert_eq!(groups(&two), [(vec![0, 3], 3), (vec![1, 2], 3)]);
        assert!(groups(&[]).is_empty());
        assert!(groups(&[&[1], &[2], &[]]).is_empty());
        assert_eq!(groups(&[&[1], &[1], &[1]]), [(vec![0, 1, 2], 1)]);
    }

    /// No other way to cut the sorted rows into groups saves more.
    #[test]
    fn no_partition_saves_more() {
        let rows: Vec<Vec<u32>> =
            (0u32..9).map(|i| (0..4).map(|t| ((i * 37 + 11 * i * i) >> t) % 2).collect()).collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let saved: usize = groups(&rows).iter().map(|(members, len)| (members.len() - 1) * len).sum();
        let mut sorted = rows.clone();
        sorted.sort();
        let worth = |some: &[&[u32]]| (some.len() - 1) * some.iter().map(|row| alike(some[0], row)).min().unwrap_or(0);
        let by_cuts = |cuts: u32| {
            let (mut total, mut first) = (0, 0);
            for end in 1..=sorted.len() {
                if end == sorted.len() || cuts >> (end - 1) & 1 == 1 {
                    total += worth(&sorted[first..end]);
                    first = end;
                }
            }
            total
        };
        assert_eq!(Some(saved), (0..1 << (sorted.len() - 1)).map(by_cuts).max());
    }
}
