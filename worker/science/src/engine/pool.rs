//! Memory that passes through models of the same sizes share, whatever run they are of: each takes some, and leaves it to the next one while that may
//! still find it in a cache. So there is as much as there are passes at a time, and it is gone with the last engine of these sizes.

use super::piece::Memory;
use crate::model::Sizes;
use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
};

/// What is not in use, last given back first.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Memory>>);

impl Pool {
    /// New where all is in use.
    pub fn take(&self) -> Memory {
        locked(&self.0).pop().unwrap_or_default()
    }

    pub fn give_back(&self, memory: Memory) {
        locked(&self.0).push(memory);
    }
}

type Pools = HashMap<Sizes, Weak<Pool>>;

/// The pool of passes through a model of these sizes.
pub(super) fn of(sizes: Sizes) -> Arc<Pool> {
    static POOLS: LazyLock<Mutex<Pools>> = LazyLock::new(Mutex::default);
    let mut pools = locked(&POOLS);
    pools.retain(|_, pool| pool.strong_count() > 0);
    let pool = pools.get(&sizes).and_then(Weak::upgrade).unwrap_or_default();
    pools.insert(sizes, Arc::downgrade(&pool));
    pool
}

/// Whoever panicked while it held the lock left a whole vector or map.
fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_of_one_shape_share_what_was_given_back() {
        let sizes = Sizes { layers: 1, width: 8, heads: 2, channels: 3, positions: 4 };
        let (pool, same) = (of(sizes), of(sizes));
        assert!(Arc::ptr_eq(&pool, &same) && !Arc::ptr_eq(&pool, &of(Sizes { width: 16, ..sizes })));
        let kept = |pool: &Pool| locked(&pool.0).len();
        let (one, two) = (pool.take(), same.take());
        pool.give_back(one);
        same.give_back(two);
        assert_eq!((kept(&pool), kept(&same)), (2, 2));
        drop((pool, same));
        assert_eq!(kept(&of(sizes)), 0, "it is gone with the last engine");
    }
}
