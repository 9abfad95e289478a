//! Envoy as a reverse transcoder: gRPC in, ThingSpace's JSON out, with both credentials injected.
//! It requests the bearer token itself. It cannot log in, so the session token is fixed.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::bench::{Core, on_core};

use crate::{gateway::folder, load::Target};

const SERVICE: &str = "bench.ThingSpace";

/// How long Envoy may take to start, and to get its token.
const DEADLINE: Duration = Duration::from_secs(20);

/// An Envoy in a process of its own.
pub(crate) struct Envoy {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the folder of the packages that `make sdk` installs.
fn packages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sdk")
}

impl Envoy {
    /// Starts Envoy, if it is installed.
    pub(crate) fn start(upstream: &str) -> Option<Self> {
        let binary = packages().join("envoy/_bin/envoy");
        if !binary.exists() {
            return None;
        }
        let folder = folder();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        fs::write(folder.path().join("bench.binpb"), descriptors()).unwrap();
        let config = folder.path().join("envoy.json");
        fs::write(&config, config_of(address, upstream, folder.path()).to_string()).unwrap();
        let mut command = Command::new(binary);
        command.arg("-c").arg(&config);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "critical"]);
        command.stdout(Stdio::null());
        let process = on_core(Core::Server, || command.spawn().unwrap());
        let envoy = Self { process, address, _folder: folder };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < DEADLINE, "Envoy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(envoy)
    }

    pub(crate) fn target(&self) -> Target {
        Target { address: self.address, pid: self.process.id(), service: SERVICE }
    }
}

/// Returns Envoy's own version.
pub(crate) fn version() -> Option<String> {
    let output =
        Command::new(packages().join("envoy/_bin/envoy")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.split_once("version: ")?.1.split('/').nth(1)?.to_owned())
}

fn descriptors() -> Vec<u8> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/suite");
    let mut compiler = protox::Compiler::new([here, packages()]).unwrap();
    compiler.include_imports(true).open_files(["envoy.proto"]).unwrap();
    // Unlike the type of prost, it keeps the annotations.
    compiler.encode_file_descriptor_set()
}

fn config_of(address: SocketAddr, upstream: &str, folder: &Path) -> Value {
    let any = |name: &str, mut value: Value| {
        value["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{name}"));
        value
    };
    let secret = |text: &str| json!({"secret": {"inline_string": text}});
    let socket = |address: SocketAddr| {
        let (address, port) = (address.ip(), address.port());
        json!({"socket_address": {"address": address, "port_value": port}})
    };
    let host = upstream.trim_start_matches("http://").trim_end_matches("/api");
    let upstream_address: SocketAddr = host.parse().unwrap();
    let injector = |credential: Value| {
        any(
            "filters.http.credential_injector.v3.CredentialInjector",
            json!({"overwrite": true, "credential": {"name": "c", "typed_config": credential}}),
        )
    };
    let token = any(
        "http.injected_credentials.oauth2.v3.OAuth2",
        json!({
            "token_endpoint": {
                "uri": format!("{upstream}/ts/v1/oauth2/token"),
                "cluster": "thingspace",
                "timeout": "5s",
            },
            "client_credentials": {
                "client_id": "id",
                "client_secret": {"name": "client"},
            },
        }),
    );
    let session = any(
        "http.injected_credentials.generic.v3.Generic",
        json!({"credential": {"name": "session"}, "header": "VZ-M2M-Token"}),
    );
    let transcoder = any(
        "filters.http.grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder",
        json!({"descriptor_path": folder.join("bench.binpb")}),
    );
    let filters = json!([
        {"name": "transcoder", "typed_config": transcoder},
        {"name": "bearer", "typed_config": injector(token)},
        {"name": "session", "typed_config": injector(session)},
        {"name": "router", "typed_config": any("filters.http.router.v3.Router", json!({}))},
    ]);
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "thingspace"}});
    let manager = any(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "in",
            "codec_type": "HTTP2",
            "http2_protocol_options": {"max_concurrent_streams": 1024},
            "route_config":
                {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": filters,
        }),
    );
    let many = json!({
        "max_connections": 10_000, "max_pending_requests": 10_000, "max_requests": 10_000,
    });
    let (mut client, mut fixed) = (json!({"name": "client"}), json!({"name": "session"}));
    client["generic_secret"] = secret("secret");
    fixed["generic_secret"] = secret("session-0");
    json!({
        "static_resources": {
            "listeners": [{
                "address": socket(address),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
            }],
            "clusters": [{
                "name": "thingspace",
                "type": "STATIC",
                "circuit_breakers": {"thresholds": [many]},
                "load_assignment": {"cluster_name": "thingspace", "endpoints": [{
                    "lb_endpoints": [{"endpoint": {"address": socket(upstream_address)}}],
                }]},
            }],
            "secrets": [client, fixed],
        },
    })
}
