//! Dense linear algebra on the small symmetric systems of the estimators (at most a few dozen unknowns).

/// Solves A·v = b for a symmetric positive definite A (n × n, only its lower triangle is read) by Cholesky's
/// factorisation. Overwrites A with its factor and b with v. False, with both spoilt, where A is singular to working
/// precision: a pivot below 1e-12 of the diagonal it started from.
pub fn solve_positive_definite(a: &mut [f64], b: &mut [f64]) -> bool {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let rest = a[i * n + j] - dot;
            if i != j {
                a[i * n + j] = rest / a[j * n + j];
            } else if rest > 1e-12 * a[i * n + i] {
                a[i * n + i] = rest.sqrt();
            } else {
                return false;
            }
        }
    }
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| a[i * n + k] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i * n + i];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_a_hilbert_system() {
        let n = 5;
        let a: Vec<f64> = (0..n * n).map(|i| 1.0 / (i / n + i % n + 1) as f64).collect();
        let want = [1.0, -2.0, 3.0, -4.0, 5.0];
        let mut b: Vec<f64> = a.chunks(n).map(|row| row.iter().zip(want).map(|(a, w)| a * w).sum()).collect();
        assert!(solve_positive_definite(&mut a.clone(), &mut b));
        for (got, want) in b.iter().zip(want) {
            assert!((got - want).abs() < 1e-9, "{b:?}");
        }
    }

    #[test]
    fn refuses_a_singular_and_an_indefinite_system() {
        assert!(!solve_positive_definite(&mut [1.0, 2.0, 2.0, 4.0], &mut [1.0, 1.0]));
        assert!(!solve_positive_definite(&mut [1.0, 2.0, 2.0, 1.0], &mut [1.0, 1.0]));
    }
}
