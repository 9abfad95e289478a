//! Real NATS servers for one test: a single one, or a cluster of three. A test may kill, freeze and
//! restart them.
//!
//! The binary is `target/tools/bin/nats-server`, which `make tools` installs, or the one that
//! NATS_SERVER names. Each test process has a loopback address of its own, so its ports are fixed
//! and a server that was killed restarts on the same ports.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use async_nats::jetstream;
use futures_util::TryStreamExt as _;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tempfile::TempDir;

/// How long a server may take to start, stop or deliver events.
const DEADLINE: Duration = Duration::from_secs(40);

/// The time limit for the answer of a health check.
const ANSWER: Duration = Duration::from_secs(2);

/// Separates the common lines of a configuration from those of one test.
const MORE: &str = "# more\n";

/// One server; killed when dropped.
#[derive(Debug)]
pub struct NatsServer {
    name: String,
    at: Ports,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// `None` in a cluster, whose servers share a folder.
    folder: Option<TempDir>,
}

/// Three servers that know each other.
#[derive(Debug)]
pub struct NatsCluster {
    pub servers: Vec<NatsServer>,
    _folder: TempDir,
}

/// Where a server listens: for clients, for other servers and for health checks.
#[derive(Debug, Clone, Copy)]
struct Ports {
    client: SocketAddrV4,
    cluster: SocketAddrV4,
    health: SocketAddrV4,
}

impl NatsServer {
    /// Starts a single server and waits until it is ready.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Does the same, with more lines in the configuration.
    pub async fn start_with(more: &str) -> Self {
        let mut server = Self::stopped_with(more);
        server.spawn();
        server.ready().await;
        server
    }

    /// Returns a server that has its ports and was not started yet.
    pub fn stopped_with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self::new("n1", Ports::next(), folder.path(), more);
        server.folder = Some(folder);
        server
    }

    fn new(name: &str, at: Ports, folder: &Path, more: &str) -> Self {
        let (config, log) =
            (folder.join(format!("{name}.conf")), folder.join(format!("{name}.log")));
        let (log_file, store) = (log.display(), folder.join(name));
        let store = store.display();
        let Ports { client, health, .. } = at;
        let text = format!(
            "server_name: {name}\nlisten: \"{client}\"\nhttp: \"{health}\"\n\
             log_file: \"{log_file}\"\n\
             jetstream {{ store_dir: \"{store}\", sync_interval: always, max_file_store: 16GB }}\n\
             {MORE}{more}\n"
        );
        fs::write(&config, text).unwrap();
        Self { name: name.to_owned(), at, config, log, child: None, folder: None }
    }

    /// Returns the loopback address that only this process uses.
    pub fn address(&self) -> Ipv4Addr {
        *self.at.client.ip()
    }

    /// Returns the URL for clients.
    pub fn url(&self) -> String {
        format!("nats://{}", self.at.client)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the folder of a stream's files.
    fn stream_folder(&self, stream: &str) -> PathBuf {
        self.config.with_file_name(&self.name).join("jetstream/$G/streams").join(stream)
    }

    /// Stops it, copies some of its streams to a folder, and starts it again.
    pub async fn back_up(&mut self, streams: &[&str], to: &Path) {
        self.stop().await;
        for stream in streams {
            copy_folder(&self.stream_folder(stream), &to.join(stream));
        }
        self.restart().await;
    }

    /// Stops it, puts copies of some streams in their place, and starts it again.
    pub async fn put_back(&mut self, streams: &[&str], from: &Path) {
        self.stop().await;
        for stream in streams {
            copy_folder(&from.join(stream), &self.stream_folder(stream));
        }
        self.restart().await;
    }

    /// Stops it, copies some of its streams to a folder, puts others in their place, and starts it
    /// again.
    pub async fn exchange(&mut self, streams: &[&str], to: &Path, from: &Path) {
        self.stop().await;
        for stream in streams {
            copy_folder(&self.stream_folder(stream), &to.join(stream));
            copy_folder(&from.join(stream), &self.stream_folder(stream));
        }
        self.restart().await;
    }

    /// Waits until the events that are stored now were delivered to this number of followers.
    pub async fn events_reach(&self, followers: usize) {
        let began = Instant::now();
        let admin = jetstream::new(async_nats::connect(self.url()).await.unwrap());
        let events = admin.get_stream("gw_events").await.unwrap();
        let last = events.cached_info().state.last_sequence;
        let reached = async || {
            let consumers: Vec<_> = events.consumers().try_collect().await.unwrap();
            consumers.iter().filter(|consumer| consumer.delivered.stream_sequence >= last).count()
        };
        while reached().await < followers {
            assert!(began.elapsed() < DEADLINE, "events do not reach all followers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts it with the same ports and files. It is not ready when this returns.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let mut command = Command::new(binary());
        command.arg("--config").arg(&self.config).stdin(Stdio::null());
        // It logs to its file. Only an error at the start goes to standard error.
        self.child =
            Some(command.stdout(Stdio::null()).spawn().expect("nats-server can be started"));
    }

    /// Starts it and waits until it is ready.
    pub async fn restart(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Waits until it is healthy: it accepts clients, and its streams are current.
    pub async fn ready(&mut self) {
        let began = Instant::now();
        while !self.is_healthy() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            let (name, log) = (&self.name, self.last_lines());
            assert!(ended.is_none(), "{name} ended ({ended:?}):\n{log}");
            assert!(began.elapsed() < DEADLINE, "{name} is not ready:\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_healthy(&self) -> bool {
        let check = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.at.health.into(), ANSWER)?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        check().is_ok_and(|answer| answer.contains(" 200 "))
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Suspends it, with its connections open.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it read its configuration again, with other additional lines.
    pub fn reload_with(&self, more: &str) {
        let text = fs::read_to_string(&self.config).unwrap();
        let (common, _) = text.split_once(MORE).unwrap();
        fs::write(&self.config, format!("{common}{MORE}{more}\n")).unwrap();
        self.signal(Signal::HUP);
    }

    /// Lets its writes to files fail from now on, as on a full disk.
    pub fn fill_disk(&self) {
        let maximum = getrlimit(Resource::Fsize).maximum;
        prlimit(Some(self.pid()), Resource::Fsize, Rlimit { current: Some(1), maximum }).unwrap();
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Stops it in lame-duck mode, and waits for its end.
    pub async fn lame_duck(&mut self) {
        self.signal(Signal::USR2);
        self.ended().await;
    }

    /// Stops it with SIGTERM, and waits for its end.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.ended().await;
    }

    async fn ended(&mut self) {
        let began = Instant::now();
        let mut child = self.child.take().expect("it runs");
        while child.try_wait().unwrap().is_none() {
            let (name, log) = (&self.name, self.last_lines());
            assert!(began.elapsed() < DEADLINE, "{name} does not end:\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("it runs");
        Pid::from_raw(child.id().cast_signed()).expect("a child has a process id")
    }

    /// Returns the last lines of its log.
    fn last_lines(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl NatsCluster {
    /// Starts three servers and waits until they are ready.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = [Ports::next(), Ports::next(), Ports::next()];
        let mut servers: Vec<_> = ports
            .iter()
            .zip(["n1", "n2", "n3"])
            .map(|(at, name)| NatsServer::new(name, *at, folder.path(), &cluster(at, &ports)))
            .collect();
        servers.iter_mut().for_each(NatsServer::spawn);
        for server in &mut servers {
            server.ready().await;
        }
        Self { servers, _folder: folder }
    }

    /// Returns the URLs of all servers, separated by commas.
    pub fn url(&self) -> String {
        self.servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// Returns the server with this name, for example the leader of a stream.
    pub fn named(&mut self, name: &str) -> &mut NatsServer {
        self.servers
            .iter_mut()
            .find(|server| server.name == name)
            .expect("a server of this cluster")
    }
}

fn cluster(at: &Ports, all: &[Ports]) -> String {
    let routes: Vec<_> =
        all.iter().map(|Ports { cluster, .. }| format!("\"nats://{cluster}\"")).collect();
    let listen = at.cluster;
    format!("cluster {{ name: test, listen: \"{listen}\", routes: [{}] }}", routes.join(", "))
}

impl Ports {
    /// Returns the ports of one more server. The address contains the process id, which is unique
    /// on this machine, as all of 127.0.0.0/8 is.
    fn next() -> Self {
        const FIRST: u16 = 20_000;
        static NEXT: AtomicU16 = AtomicU16::new(FIRST);
        let [high, x, y, z] = std::process::id().to_be_bytes();
        assert_eq!(high, 0, "process ids have 22 bits");
        let address = Ipv4Addr::new(127, x, y, z);
        let first = NEXT.fetch_add(3, Ordering::Relaxed);
        let [client, cluster, health] = [0, 1, 2].map(|n| SocketAddrV4::new(address, first + n));
        Self { client, cluster, health }
    }
}

/// Replaces a folder by a copy of another one.
fn copy_folder(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn binary() -> PathBuf {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let path = std::env::var_os("NATS_SERVER")
        .map_or_else(|| root.join(target).join("tools/bin/nats-server"), PathBuf::from);
    assert!(File::open(&path).is_ok(), "{} is missing: run `make tools`", path.display());
    path
}
