//! What a worker process is told when it starts.

use crate::error::AgentError;
use std::{fmt, path::PathBuf, time::Duration};
use taskvec_science::gpu;

/// How much disk the cache of checkpoints takes unless told otherwise.
const CACHE_BYTES: u64 = 4 << 30;

/// The configuration of one worker process. Start from [`WorkerConfig::new`] and change what differs.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub server: String,
    pub token: Secret,
    /// PEM file with the authority that signed the server's certificate; needed for `https`, refused for `http`.
    pub tls_ca: Option<PathBuf>,
    /// Shown in listings; need not be unique.
    pub name: String,
    /// Scratch of this worker alone: outcomes that the server has not confirmed, and cached checkpoints.
    pub data_dir: PathBuf,
    /// One: `cpu`, or `cuda:N` for training on a GPU.
    pub devices: Vec<String>,
    /// Jobs that run at the same time.
    pub slots: usize,
    /// CPU threads of all slots together. None: the cores of this machine that no other worker has claimed.
    pub threads: Option<usize>,
    /// Runs that are trained together in one slot, where the server finds some of one shape; 1: each has a slot for itself.
    pub stack: u32,
    /// Bytes that the runs of one slot may take together. None: half of the machine's memory, divided by the slots.
    pub stack_bytes: Option<u64>,
    /// The cache is kept below this, apart from what is in use.
    pub cache_bytes: u64,
    pub backoff: Backoff,
    /// On a polite stop: how long jobs that cannot be handed over may still run.
    pub drain_grace: Duration,
    /// Give up when the server was not reached this long after the start. None: try for ever.
    pub fail_fast: Option<Duration>,
}

impl WorkerConfig {
    pub fn new(server: impl Into<String>, token: Secret, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            server: server.into(),
            token,
            tls_ca: None,
            name: host(),
            data_dir: data_dir.into(),
            devices: vec!["cpu".into()],
            slots: 1,
            threads: None,
            stack: 1,
            stack_bytes: None,
            cache_bytes: CACHE_BYTES,
            backoff: Backoff::default(),
            drain_grace: Duration::from_secs(20),
            fail_fast: None,
        }
    }

    /// Refuses what this worker could not honour, before anything is touched.
    pub(crate) fn check(&self) -> Result<(), AgentError> {
        self.device()?;
        let wrong = |what: &str| Err(AgentError::Config(what.to_owned()));
        if self.slots == 0 {
            return wrong("slots must be at least 1");
        }
        if self.stack == 0 {
            return wrong("stack must be at least 1: that many runs share a slot");
        }
        match self.threads {
            Some(threads) if threads < self.slots => Err(AgentError::Config(format!(
                "{} slots need at least as many threads, but threads is {threads}; raise threads or lower slots",
                self.slots
            ))),
            _ => Ok(()),
        }
    }
}

/// What a worker computes on: see `gpu` of the science on what that is where there are GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    /// GPUs by number, at least one.
    Cuda(Vec<usize>),
}

impl WorkerConfig {
    /// What it computes on, which is there and can be used.
    pub(crate) fn device(&self) -> Result<Device, AgentError> {
        device(&self.devices)
    }

    /// What the runs of one slot may take: of the machine's memory half, of a GPU's nine tenths of what is free, shared by the
    /// slots that it has at a time.
    pub(crate) fn stack_bytes_of(&self, slots: usize) -> u64 {
        let all = || match self.device() {
            Ok(Device::Cuda(gpus)) => {
                let free = gpus.iter().map(|gpu| gpu::free_bytes(*gpu).unwrap_or(0)).min().unwrap_or(0);
                free / 10 * 9 / slots.div_ceil(gpus.len()).max(1) as u64
            }
            _ => machine_bytes() / 2 / slots.max(1) as u64,
        };
        self.stack_bytes.unwrap_or_else(all)
    }
}

/// The devices that `--device` names, each by its whole name.
///
/// # Errors
/// Names of none, or of such as cannot be used here.
pub fn usable(devices: &[String]) -> Result<Vec<String>, AgentError> {
    Ok(match device(devices)? {
        Device::Cpu => vec!["cpu".to_owned()],
        Device::Cuda(gpus) => gpus.into_iter().map(|gpu| format!("cuda:{gpu}")).collect(),
    })
}

/// `cpu`, or `cuda:N` and numbers or more of these after it; GPUs are there and can be used.
fn device(names: &[String]) -> Result<Device, AgentError> {
    let config = |what: String| Err(AgentError::Config(what));
    if names == ["cpu"] {
        return Ok(Device::Cpu);
    }
    let mut gpus = Vec::new();
    for name in names {
        let number = if gpus.is_empty() { None } else { Some(name.as_str()) };
        let number = name.strip_prefix("cuda:").or(number).and_then(|number| number.parse().ok());
        match number {
            Some(gpu) if gpus.contains(&gpu) => return config(format!("device `cuda:{gpu}` is named twice")),
            Some(gpu) => gpus.push(gpu),
            None if name == "cpu" => {
                return config("the CPU is not named beside GPUs: what they cannot hold is computed there".to_owned());
            }
            None => return Err(AgentError::UnknownDevice(name.clone())),
        }
    }
    for gpu in &gpus {
        gpu::free_bytes(*gpu).map_err(|reason| AgentError::NoGpu { device: format!("cuda:{gpu}"), reason })?;
    }
    match gpus.is_empty() {
        true => config("a device is needed: `cpu`, `cuda:N` or several GPUs, `cuda:0,1`".to_owned()),
        false => Ok(Device::Cuda(gpus)),
    }
}

/// The memory of this machine.
pub fn machine_bytes() -> u64 {
    let found = rustix::system::sysinfo();
    found.totalram.saturating_mul(found.mem_unit.into())
}

/// Waiting times between tries: doubling from `first` up to `max`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), max: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// How long to wait after `failures` failures in a row (the first is 0).
    pub(crate) fn wait(&self, failures: u32) -> Duration {
        self.first.saturating_mul(2_u32.saturating_pow(failures)).min(self.max)
    }
}

/// The server's token. It never shows in logs or messages.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The name of this machine.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> WorkerConfig {
        WorkerConfig::new("http://localhost:1", Secret::new("hunter2"), "/tmp/x")
    }

    #[test]
    fn the_token_is_never_shown() {
        let shown = format!("{:?}", config());
        assert!(shown.contains("[secret]") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_what_to_do() {
        let refused = |change: fn(&mut WorkerConfig)| {
            let mut config = config();
            change(&mut config);
            config.check().expect_err("is refused").to_string()
        };
        assert!(config().check().is_ok());
        assert!(refused(|c| c.devices = vec!["cuda:1000".into()]).starts_with("device `cuda:1000`: "));
        for device in ["gpu", "cuda", "cuda:x", "cpu:0"] {
            let mut config = config();
            config.devices = vec![device.into()];
            assert!(config.check().unwrap_err().to_string().contains(&format!("`{device}`")), "{device}");
        }
        assert!(refused(|c| c.devices = vec![]).contains("a device is needed"));
        assert!(refused(|c| c.devices = ["cuda:0", "0"].map(str::to_owned).into()).contains("named twice"));
        assert!(refused(|c| c.devices = ["cuda:0", "cpu"].map(str::to_owned).into()).contains("beside GPUs"));
        assert!(refused(|c| c.devices = ["cuda:999", "cuda:1000"].map(str::to_owned).into()).contains("`cuda:999`"));
        assert!(refused(|c| c.devices = ["0", "1"].map(str::to_owned).into()).contains("`0` is not a device"));
        assert!(refused(|c| c.slots = 0).contains("slots"));
        assert!(refused(|c| c.stack = 0).contains("at least 1"));
        assert!(
            refused(|c| {
                c.slots = 3;
                c.threads = Some(2);
            })
            .contains("raise threads")
        );
    }

    #[test]
    fn slots_share_the_memory_unless_told_otherwise() {
        let mut config = config();
        let one = config.stack_bytes_of(1);
        assert!(one > 64 << 20, "{one}");
        assert_eq!(config.stack_bytes_of(4), one / 4);
        config.stack_bytes = Some(7);
        assert_eq!(config.stack_bytes_of(4), 7);
    }

    #[test]
    fn backoff_doubles_up_to_its_cap() {
        let waits: Vec<u128> = (0..8).map(|n| Backoff::default().wait(n).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(Backoff::default().wait(u32::MAX).as_millis(), 5000);
    }
}
