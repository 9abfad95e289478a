//! Benches whose servers and clients are processes of their own: how these are started, and what a
//! process uses.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{self, Runtime};

/// Returns the arguments of this binary, without those of Cargo.
pub fn arguments() -> Vec<String> {
    env::args().skip(1).filter(|text| text != "--bench").collect()
}

/// Returns a runtime with a worker for each of two processors.
pub fn runtime() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A processor for the server that is measured, or one for everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Core {
    Load,
    Server,
}

/// Moves this process to the processor for load. Call it before there are other threads.
pub fn use_load_core() {
    set_affinity(&only(Core::Load));
}

/// Calls a function on a processor. Processes that it starts remain there.
pub fn on_core<T>(core: Core, start: impl FnOnce() -> T) -> T {
    with_affinity(&only(core), start)
}

/// Calls a function on any processor. Processes that it starts use all of them.
pub fn on_all_cores<T>(start: impl FnOnce() -> T) -> T {
    with_affinity(&all(), start)
}

fn with_affinity<T>(cores: &CpuSet, start: impl FnOnce() -> T) -> T {
    let before = sched_getaffinity(None).unwrap();
    set_affinity(cores);
    let started = start();
    set_affinity(&before);
    started
}

fn set_affinity(cores: &CpuSet) {
    sched_setaffinity(None, cores).unwrap();
}

/// Returns the processors that this process was started on.
fn all() -> CpuSet {
    static ALL: OnceLock<CpuSet> = OnceLock::new();
    *ALL.get_or_init(|| sched_getaffinity(None).unwrap())
}

/// Returns the last processor for the server, and the others for load, as far as there are several.
fn only(core: Core) -> CpuSet {
    let (all, mut cores) = (all(), CpuSet::new());
    let last = (0..CpuSet::MAX_CPU).rev().find(|n| all.is_set(*n)).unwrap();
    for n in (0..CpuSet::MAX_CPU).filter(|n| all.is_set(*n)) {
        let is_server = n == last;
        if all.count() == 1 || is_server == (core == Core::Server) {
            cores.set(n);
        }
    }
    cores
}

/// This binary with other arguments. It is killed when it is dropped.
pub struct Helper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Helper {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that the process prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        // This runtime has nothing else to do but the simulator, which has a thread.
        tokio::task::block_in_place(|| self.output.read_line(&mut line)).unwrap();
        assert!(!line.is_empty(), "a process of the bench ended");
        line.trim_end().to_owned()
    }

    pub fn write(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Writes a line, and waits for the answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.write(line);
        self.line()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process uses.
pub struct Usage {
    /// Resident memory in bytes.
    pub memory: f64,
    /// The most resident memory since its start, or since [`reset_peak`].
    pub peak: f64,
    /// Processor time since its start.
    pub processor: Duration,
}

impl Usage {
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The name in brackets may contain blanks. Fields 14 and 15 are in ticks of 10 ms.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        // More precise, but without the threads that have ended. A thread may end meanwhile.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let nanos = threads.filter_map(|thread| {
            let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        let processor = Duration::from_millis(ticks * 10).max(Duration::from_nanos(nanos.sum()));
        Self { memory: bytes("VmRSS:"), peak: bytes("VmHWM:"), processor }
    }
}

/// Lets the peak of a process's memory begin at what it uses now.
pub fn reset_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}
