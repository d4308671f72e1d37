//! Exact leave-one-out k-nearest-neighbour classification.
//!
//! The rules, which make it a function of the points and their order alone:
//! - Distances are Euclidean, computed in f64 as a sum of squared differences in a fixed order. (The expanded form
//!   |a|² + |b|² − 2 a·b is faster but cancels: among states that lie close together, far from the origin, as those of
//!   an untrained model do, it would order neighbours by rounding.)
//! - A point is never its own neighbour. Its neighbours are the k nearest of all others (all of them where there are
//!   fewer); of equally distant points the one with the lower index is nearer.
//! - They vote with equal weights. Of labels with equally many votes the one whose first member is nearest wins:
//!   unlike "the smallest label" this favours no task.

use rayon::prelude::*;
use taskvec_kernels::slices;

/// The neighbours of every point, nearest first: indices into `points`, which holds n × `dim` values.
pub fn neighbours(points: &[f64], dim: usize, k: usize) -> Vec<Vec<u32>> {
    (0..points.len() / dim).into_par_iter().map(|i| nearest(points, dim, i, k)).collect()
}

fn nearest(points: &[f64], dim: usize, i: usize, k: usize) -> Vec<u32> {
    let mut distances = vec![0.0; points.len() / dim];
    slices::squared_distances(&points[i * dim..][..dim], points, &mut distances);
    let others = distances.into_iter().zip(0..).filter(|&(_, j)| j as usize != i);
    let mut found: Vec<(f64, u32)> = others.collect();
    let order = |a: &(f64, u32), b: &(f64, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    if k < found.len() {
        found.select_nth_unstable_by(k, order);
        found.truncate(k);
    }
    found.sort_unstable_by(order);
    found.into_iter().map(|(_, j)| j).collect()
}

/// The label most neighbours have, by the rules above; none without neighbours.
pub fn vote(labels: impl Iterator<Item = u32>) -> Option<u32> {
    // In order of first appearance, so that the first of the largest counts wins.
    let mut counts: Vec<(u32, usize)> = Vec::new();
    for label in labels {
        match counts.iter_mut().find(|(l, _)| *l == label) {
            Some((_, count)) => *count += 1,
            None => counts.push((label, 1)),
        }
    }
    counts.into_iter().reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(label, _)| label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_not_its_own_neighbour_and_ties_go_to_the_lower_index() {
        // 0 and 2 coincide; 1 and 3 are equally far from both.
        let points = [0.0, 1.0, 0.0, -1.0, 5.0];
        assert_eq!(neighbours(&points, 1, 3), [[2, 1, 3], [0, 2, 3], [0, 1, 3], [0, 2, 1], [1, 0, 2]]);
        assert_eq!(neighbours(&points, 1, 99)[4], [1, 0, 2, 3], "all others where there are fewer than k");
        assert_eq!(neighbours(&[1.0, 2.0], 2, 3), [Vec::<u32>::new()]);
    }

    #[test]
    fn close_points_far_from_the_origin_keep_their_order() {
        // In the expanded form |a|² + |b|² − 2 a·b these differences (1e-14) vanish beside 1e12.
        let points = [1e6, 1e6 + 3e-7, 1e6 - 1e-7, 1e6 + 2e-7];
        assert_eq!(neighbours(&points, 1, 3)[0], [2, 3, 1]);
    }

    #[test]
    fn distances_use_every_dimension() {
        for dim in [1, 7, 8, 9, 17] {
            for changed in 0..dim {
                let (a, mut b) = (vec![1.0; dim], vec![1.0; dim]);
                b[changed] = 3.0;
                let mut distance = [f64::NAN];
                slices::squared_distances(&a, &b, &mut distance);
                assert_eq!(distance, [4.0]);
            }
        }
    }

    #[test]
    fn the_majority_wins_and_a_tie_goes_to_the_nearest_label() {
        assert_eq!(vote([2, 0, 0, 1].into_iter()), Some(0));
        assert_eq!(vote([2, 0, 0, 2].into_iter()), Some(2));
        assert_eq!(vote([1, 2, 0, 0, 2].into_iter()), Some(2));
        assert_eq!(vote([].into_iter()), None);
    }
}
