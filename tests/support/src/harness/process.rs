//! The real binary.

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use thingspace_gateway::config::Config;

use super::{Client, DEADLINE, connect, disclosure::assert_discloses_nothing};

/// A process that serves. It is killed when it is dropped. Its log must disclose nothing.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    /// The address of probes.
    pub admin: SocketAddr,
    /// The address of callbacks, if they are enabled.
    pub callbacks: Option<SocketAddr>,
    /// The lines of its log that were read.
    seen: Vec<String>,
    log: mpsc::Receiver<String>,
}

impl Process {
    /// Starts `serve` and waits until it is ready.
    pub fn serve(config: &Config, dir: &Path) -> Self {
        Self::spawn(&mut serve_command(config, dir))
    }

    /// Starts `serve` and waits until it listens, which may be before it is ready.
    pub fn launch(config: &Config, dir: &Path) -> Self {
        Self::spawn_until(&mut serve_command(config, dir), "listening")
    }

    /// Starts a command that serves, and waits until it is ready. The level of its log is `info`,
    /// unless the command sets another one.
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_until(command, "ready")
    }

    #[expect(clippy::zombie_processes, reason = "dropping it kills and waits")]
    fn spawn_until(command: &mut Command, message: &str) -> Self {
        if command.get_envs().all(|(name, _)| name != "RUST_LOG") {
            command.env("RUST_LOG", "info");
        }
        let mut child = command
            .env("THINGSPACE_GATEWAY__TELEMETRY__LOG_FORMAT", "json")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, log) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        thread::spawn(move || {
            lines.map_while(Result::ok).try_for_each(|line| sender.send(line).ok())
        });
        let (mut address, mut admin, mut callbacks) = (None, None, None);
        let mut seen = Vec::new();
        loop {
            let Ok(line) = log.recv_timeout(DEADLINE) else {
                let _ = child.kill();
                panic!("the gateway did not become ready:\n{}", seen.join("\n"));
            };
            let logged: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            seen.push(line);
            if logged["message"] == "listening" {
                address = logged["address"].as_str().map(|text| text.parse().unwrap());
            }
            if logged["message"] == "answering probes" {
                admin = logged["address"].as_str().map(|text| text.parse().unwrap());
            }
            if logged["message"] == "listening for callbacks" {
                callbacks = logged["address"].as_str().map(|text| text.parse().unwrap());
            }
            if logged["message"] == message {
                let address = address.expect("the address was logged");
                let admin = admin.expect("the address of probes was logged");
                return Self { child, address, admin, callbacks, seen, log };
            }
        }
    }

    pub async fn client(&self) -> Client {
        connect(self.address).await
    }

    /// Waits until the log has a line with this text.
    pub fn wait_for_line(&mut self, text: &str) {
        while !self.seen.iter().any(|line| line.contains(text)) {
            let line = self.log.recv_timeout(DEADLINE);
            self.seen.push(
                line.unwrap_or_else(|_| {
                    panic!("no line of the log has {text:?}: {:#?}", self.seen)
                }),
            );
        }
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends the signal of a closed terminal.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Suspends the process, with its connections open.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end. Returns all lines of the log.
    pub async fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + DEADLINE;
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    let mut lines = std::mem::take(&mut self.seen);
                    lines.extend(self.log.iter());
                    assert_discloses_nothing(lines.iter().map(String::as_str));
                    return (status, lines);
                }
                assert!(Instant::now() < deadline, "the gateway did not end in time");
                thread::park_timeout(Duration::from_millis(10));
            }
        });
        status.await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !thread::panicking() {
            self.seen.extend(self.log.iter());
            assert_discloses_nothing(self.seen.iter().map(String::as_str));
        }
    }
}

/// The gateway's binary. Cargo builds it into the folder above that of the tests.
pub fn binary() -> PathBuf {
    let folder = env::current_exe().unwrap();
    let binary = folder.parent().unwrap().with_file_name("thingspace-gateway");
    assert!(binary.is_file(), "{} is missing", binary.display());
    binary
}

/// A command that serves with a configuration.
pub fn serve_command(config: &Config, dir: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("serve").arg("--config").arg(write_config(config, dir));
    command
}

/// Writes a configuration into a file for `serve`.
pub fn write_config(config: &Config, dir: &Path) -> PathBuf {
    let file = dir.join("gateway.toml");
    std::fs::write(&file, config.to_string()).unwrap();
    file
}
