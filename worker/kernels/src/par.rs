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

/// A pointer that jobs on several threads may hold, to write to parts of one result that do not overlap.
pub struct Shared<T>(*mut T);

// By hand, since deriving would ask the same of the elements.
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}
// SAFETY: whoever writes through it promises that nobody else does (see `part` and the callers of `at`).
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(start: *mut T) -> Self {
        Self(start)
    }

    /// A method, so that closures capture the whole and not its field.
    #[inline(always)]
    pub fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }

    /// Some of the elements.
    ///
    /// # Safety
    /// They are within the memory that the pointer was made from, which lives for `'a`, and nobody else uses them.
    #[inline(always)]
    pub unsafe fn part<'a>(self, offset: usize, len: usize) -> &'a mut [T] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset), len) }
    }
}
