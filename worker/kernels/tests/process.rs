//! `process::prepare` in a process that has just begun, and in one that runs threads (no harness: it starts some).

use std::sync::mpsc;

const VARIABLE: &str = "CANDLE_NUM_THREADS";

/// Page faults of this process that read no disk: field 10 of /proc/self/stat, the eighth after the name.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn page_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is mounted");
    let (_, rest) = stat.rsplit_once(')').expect("the name is in brackets");
    rest.split_whitespace().nth(7).and_then(|field| field.parse().ok()).expect("a count of faults")
}

/// As large as the widest activation of the paper's model, again and again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn freed_memory_is_used_again() {
    const BYTES: usize = 20 << 20;
    let use_it = || std::hint::black_box(vec![1u8; BYTES]).len();
    use_it();
    let before = page_faults();
    (0..20).for_each(|_| assert_eq!(use_it(), BYTES));
    let faults = page_faults() - before;
    assert!(faults < (BYTES / 4096) as u64, "{faults} page faults: freed memory went back to the system");
}

fn main() {
    if cfg!(not(all(target_os = "linux", target_env = "gnu"))) || std::env::var_os(VARIABLE).is_some() {
        println!("process::prepare: not tried (needs Linux with glibc, and {VARIABLE} unset)");
        return;
    }
    let (stop, stopped) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || stopped.recv());
    assert!(!taskvec_kernels::process::prepare(), "the environment must not change beside a thread");
    assert_eq!(std::env::var_os(VARIABLE), None);
    drop(stop);
    assert!(other.join().is_ok());
    // The thread's entry may outlive `join` for a moment.
    let ready = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        taskvec_kernels::process::prepare()
    });
    assert!(ready && std::env::var_os(VARIABLE).is_some_and(|value| value == "1"));
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        freed_memory_is_used_again();
        // glibc gives other threads arenas of their own, which it trims at once, unless told otherwise.
        assert!(std::thread::spawn(freed_memory_is_used_again).join().is_ok());
    }
    println!("process::prepare: ok");
}
