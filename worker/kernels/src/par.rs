//! Splitting work over the threads of the caller's rayon pool. What the pieces are never depends on how many threads
//! there are, so neither do the results.

use rayon::prelude::*;

/// Elements (of the cost of a GELU each) below which handing work to other threads costs more than it saves.
const WORTH_SPLITTING: usize = 1 << 15;

/// Runs `work` on every job: in parallel where the whole touches enough `elements`.
pub fn each<J: Send>(elements: usize, jobs: impl Iterator<Item = J>, work: impl Fn(J) + Sync + Send) {
    if elements < WORTH_SPLITTING || rayon::current_num_threads() == 1 {
        jobs.for_each(work);
    } else {
        jobs.collect::<Vec<_>>().into_par_iter().with_max_len(1).for_each(work);
    }
}
