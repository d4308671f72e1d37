//! Settings of the whole process without which training on a CPU spends half its time beside the work.

/// To be called first thing in `main` of a process that trains, before any thread starts.
///
/// - candle adds large tensors on a pool of its own, as wide as the machine and spinning while it waits, whatever rayon
///   pool it is called from (its backward adds every gradient so). `CANDLE_NUM_THREADS=1` is set, unless it is set
///   already, so that a worker stays within its share of the machine.
/// - glibc returns the memory of every large tensor to the system, above all on threads other than the first, and each
///   use then costs a page fault per 4 KiB: more than the arithmetic. It is told to keep what was freed.
///
/// Returns whether candle's pool is bounded: false when other threads run already (the environment cannot be changed
/// safely then) or where their number cannot be told.
pub fn prepare() -> bool {
    keep_freed_memory();
    const VARIABLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone {
        // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
    alone
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    use std::ffi::c_int;
    // SAFETY: declared as in glibc's malloc.h.
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    const TRIM_THRESHOLD: c_int = -1;
    const TOP_PAD: c_int = -2;
    const MMAP_THRESHOLD: c_int = -3;
    const ARENA_MAX: c_int = -8;
    // 32 MiB is the highest threshold that glibc takes.
    for (parameter, value) in
        [(ARENA_MAX, 1), (MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 1 << 30), (TOP_PAD, 64 << 20)]
    {
        // SAFETY: mallopt may be called at any time; a value that it refuses changes nothing.
        unsafe { mallopt(parameter, value) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}
