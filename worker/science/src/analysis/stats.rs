//! Means with their standard errors.

/// Mean of independent values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub mean: f64,
    /// Sample standard deviation (n − 1) over the square root of n; 0 for a single value, which says nothing about it.
    pub stderr: f64,
    pub n: u32,
}

impl Summary {
    /// None without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
        let stderr = if values.len() > 1 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
        Some(Self { mean, stderr, n: values.len() as u32 })
    }
}

/// The error of one latent task at one position (1 … K), or averaged over positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// From 0.
    pub task: usize,
    pub position: Option<u32>,
    pub error: Summary,
}

/// Summarises errors (n sequences × K positions, row-major) by latent task and position: for each task the positions in
/// order, then their mean, whose standard error is over sequences too. A task without sequences has no cells.
pub fn by_task_and_position(tasks: u32, examples: usize, basis: &[u32], errors: &[f64]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for task in 0..tasks {
        let rows: Vec<&[f64]> =
            errors.chunks_exact(examples).zip(basis).filter(|&(_, &b)| b == task).map(|(row, _)| row).collect();
        let mut add = |position: Option<u32>, values: Vec<f64>| {
            cells.extend(Summary::of(&values).map(|error| Cell { task: task as usize, position, error }));
        };
        for p in 0..examples {
            add(Some(p as u32 + 1), rows.iter().map(|row| row[p]).collect());
        }
        add(None, rows.iter().map(|row| row.iter().sum::<f64>() / examples as f64).collect());
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_a_few_numbers() {
        let s = Summary::of(&[1.0, 2.0, 3.0, 6.0]).unwrap();
        // Sample variance 14/3, so the standard error is sqrt(14/12).
        assert_eq!((s.mean, s.n), (3.0, 4));
        assert!((s.stderr - (14.0f64 / 12.0).sqrt()).abs() < 1e-15);
        assert_eq!(Summary::of(&[5.0]), Some(Summary { mean: 5.0, stderr: 0.0, n: 1 }));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn cells_come_by_task_then_position_then_mean() {
        // Sequences of tasks 2, 0, 2; none of task 1.
        let cells = by_task_and_position(3, 2, &[2, 0, 2], &[1.0, 3.0, 10.0, 20.0, 5.0, 9.0]);
        let got: Vec<_> = cells.iter().map(|c| (c.task, c.position, c.error.mean, c.error.n)).collect();
        assert_eq!(
            got,
            [
                (0, Some(1), 10.0, 1),
                (0, Some(2), 20.0, 1),
                (0, None, 15.0, 1),
                (2, Some(1), 3.0, 2),
                (2, Some(2), 6.0, 2),
                (2, None, 4.5, 2)
            ]
        );
        // Means over positions are 2 and 7: deviation 3.5355, over sqrt 2.
        assert!((cells[5].error.stderr - 2.5).abs() < 1e-12);
    }
}
