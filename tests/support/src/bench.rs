//! Benches whose servers and clients are processes of their own: how these are started, and what a
//! process uses.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use tokio::runtime::{self, Runtime};

/// Returns the arguments of this binary, without those of Cargo.
pub fn arguments() -> Vec<String> {
    env::args().skip(1).filter(|text| text != "--bench").collect()
}

/// Returns a runtime with a worker for each of two processors.
pub fn runtime() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
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
    /// Processor time of its threads since their start. Threads that have ended do not count.
    pub processor: Duration,
}

impl Usage {
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: f64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        // The stat file of the process has only ticks of 10 ms.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let nanoseconds = threads.filter_map(|thread| {
            let times = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            times.split_whitespace().next()?.parse::<u64>().ok()
        });
        let processor = Duration::from_nanos(nanoseconds.sum());
        Self { memory: kilobytes * 1024.0, processor }
    }
}
