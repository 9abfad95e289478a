//! The command line: the types of its arguments. Their doc comments are the texts of `--help`.
//! `main` and [`crate::app`] run the commands.
#![expect(missing_docs, reason = "a doc comment would be a text of `--help`")]

mod operator;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use operator::{
    AccountArgs, CallbacksCommand, GatewayArgs, ListArgs, OperatorCommand, OrdersCommand,
    QuarantineCommand, RegisterArgs, RequestsCommand, RestoreArgs, RotateArgs, SettleArgs,
    ShowArgs, StoreCommand, UnblockArgs,
};

/// A gRPC gateway for eSIM profile downloads with Verizon's ThingSpace.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thingspace-gateway dev                          try it, without an account or a configuration
  thingspace-gateway check --config gateway.toml  find mistakes in the configuration
  thingspace-gateway doctor --config gateway.toml find out why something does not work
  thingspace-gateway serve --config gateway.toml  run the gateway

Operate a running gateway, through its Unix socket:
  thingspace-gateway status --config gateway.toml
  thingspace-gateway requests list --config gateway.toml
  thingspace-gateway orders unknown --config gateway.toml
  thingspace-gateway callbacks list --config gateway.toml
  thingspace-gateway quarantine list --config gateway.toml

Operate a stopped gateway:
  thingspace-gateway store restore store.backup --config gateway.toml

Environment variables set keys of the configuration:
  THINGSPACE_GATEWAY__GRPC__LISTEN=127.0.0.1:50052 thingspace-gateway dev

Exit codes: 0 success, 1 failure, 64 wrong arguments, 78 wrong configuration. doctor: 0, 1 or 2.
Signals: SIGTERM, SIGINT and SIGHUP drain the gateway; a second signal stops it at once.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway
    Serve(ServeArgs),
    /// Run a gateway together with a simulated ThingSpace, on loopback
    Dev(DevArgs),
    /// Run a simulated ThingSpace alone
    Simulate(SimulateArgs),
    /// Print the effective configuration, or all of its problems
    Check(CheckArgs),
    /// Check whether a gateway can work here: configuration, store, network, ThingSpace
    Doctor(DoctorArgs),
    /// Check over gRPC whether a gateway can answer calls
    Health(HealthArgs),
    #[command(flatten)]
    Operator(OperatorCommand),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  thingspace-gateway serve --config /etc/thingspace-gateway/gateway.toml

A minimal configuration file:
  [store]
  path = \"/var/lib/thingspace-gateway/store.redb\"

  [[credentials]]
  name = \"main\"
  accounts = [\"0000123456-00001\"]
  key_file = \"/etc/thingspace-gateway/main/key\"
  secret_file = \"/etc/thingspace-gateway/main/secret\"
  username_file = \"/etc/thingspace-gateway/main/username\"
  password_file = \"/etc/thingspace-gateway/main/password\"")]
pub struct ServeArgs {
    /// The configuration file (TOML); src/config.default.toml describes every key
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Prints its addresses, and grpcurl commands to paste one after the other. Callbacks are enabled.
The store is deleted at the end, unless --store names a file for it. The simulated ThingSpace
forgets its requests when it stops.

Examples:
  thingspace-gateway dev
  thingspace-gateway dev --store dev.redb         keep requests and keys for the next start
  thingspace-gateway dev --listen 127.0.0.1:0     listen on a free port
  RUST_LOG=debug thingspace-gateway dev           log more")]
pub struct DevArgs {
    /// Loopback address of the API; probes then listen on a free port [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR", value_parser = loopback)]
    pub listen: Option<SocketAddr>,
    /// Keep the store in this file
    #[arg(long, value_name = "PATH")]
    pub store: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Accounts      0000123456-00001, 0000123456-00002
Credentials   simulator-key, simulator-secret, simulator-user, simulator-password

Example: run a gateway against it, with these credentials in its files
  thingspace-gateway simulate --listen 127.0.0.1:8090
  THINGSPACE_GATEWAY__THINGSPACE__BASE_URL=http://127.0.0.1:8090/api \\
    thingspace-gateway serve --config gateway.toml

Example: execute the next order, and drop its answer
  thingspace-gateway simulate --control 127.0.0.1:8091
  curl 127.0.0.1:8091/faults \\
    -d '{\"endpoint\": \"download\", \"when\": \"after_effect\", \"answer\": \"drop\", \
\"times\": 1}'
  curl 127.0.0.1:8091        list everything that can be controlled")]
pub struct SimulateArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// Address of the control API for tests (faults, outcomes, recorded calls); it has no
    /// authentication
    #[arg(long, value_name = "ADDR")]
    pub control: Option<SocketAddr>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Reads the file and the environment as serve does, and checks the files that they name. Sends
nothing and prints no secret. The exit code is 78 if there is a problem.

Examples:
  thingspace-gateway check --config gateway.toml
  thingspace-gateway check --config gateway.toml --online   the same as doctor")]
#[command(mut_arg("format", |format| format.requires("online")))]
#[command(mut_arg("json", |json| json.requires("online")))]
pub struct CheckArgs {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Do what `doctor` does instead, with its exit codes
    #[arg(long)]
    pub online: bool,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Checks the configuration, secret files, policy and limits, the store, names, ThingSpace, the clock
and the address for callbacks. It never logs in and changes nothing. A running gateway is asked
about everything that `status` shows; without one, logins and registrations are not checked.

Each line is ok, a warning, a failure, or says why a check was not made. Exit codes: 0 no problem, 1
a warning is the worst, 2 a failure is.

Examples:
  thingspace-gateway doctor --config gateway.toml
  thingspace-gateway doctor --config gateway.toml --format prometheus > doctor.prom")]
pub struct DoctorArgs {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The format of the findings
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

impl ReportArgs {
    pub fn format(&self) -> ReportFormat {
        if self.json { ReportFormat::Json } else { self.format }
    }
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Text,
    Json,
    /// For the textfile collector of Prometheus's node exporter
    Prometheus,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The exit code is 0 if the gateway can answer calls, and 1 if it cannot or if no answer comes within
5 s.

Examples:
  thingspace-gateway health --address 127.0.0.1:50051
  thingspace-gateway health --address thingspace-gateway.esim.svc:50051 --tls --ca-file ca.crt

With grpc.client_cert = \"required\":
  thingspace-gateway health --address gateway.example.com:50051 --tls --cert-file client.pem \\
    --key-file client.key")]
pub struct HealthArgs {
    /// Address of the API, HOST:PORT
    #[arg(long, value_name = "ADDR", value_parser = host_and_port)]
    pub address: String,
    /// Connect with TLS
    #[arg(long)]
    pub tls: bool,
    /// The authorities that sign the gateway's certificate (PEM) [default: those of the system]
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub ca_file: Option<PathBuf>,
    /// A client certificate (PEM), if the gateway requires one
    #[arg(long, value_name = "FILE", requires_all = ["tls", "key_file"])]
    pub cert_file: Option<PathBuf>,
    /// The key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
}

fn host_and_port(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let is_host = !host.is_empty() && (!host.contains(':') || host.starts_with('['));
    if is_host && port.parse::<u16>().is_ok_and(|port| port > 0) {
        Ok(text.to_owned())
    } else {
        Err("must be HOST:PORT, for example localhost:50051 or [::1]:50051".to_owned())
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "must be ADDRESS:PORT, for example 127.0.0.1:0".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("must be a loopback address, because dev has no authentication".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_format_of_findings_belongs_to_the_checks_over_the_network() {
        let parse = |arguments: &[&str]| {
            let check = ["thingspace-gateway", "check", "--config", "gateway.toml"];
            Cli::try_parse_from([&check[..], arguments].concat())
        };
        for arguments in [["--json"].as_slice(), &["--format", "prometheus"]] {
            assert!(parse(arguments).is_err());
            assert!(parse(&[arguments, &["--online"]].concat()).is_ok());
        }
        assert!(parse(&[]).is_ok());
    }

    #[test]
    fn the_address_of_health_has_a_port() {
        let parse =
            |address| Cli::try_parse_from(["thingspace-gateway", "health", "--address", address]);
        for address in ["localhost:50051", "10.0.0.1:1", "[::1]:50051"] {
            assert!(parse(address).is_ok(), "{address}");
        }
        for address in ["localhost", "localhost:", "localhost:0", "[::1]", "::1:50051", ":50051"] {
            let error = parse(address).unwrap_err().to_string();
            assert!(error.contains("must be HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn dev_stays_on_loopback() {
        let parse =
            |address| Cli::try_parse_from(["thingspace-gateway", "dev", "--listen", address]);
        assert!(parse("127.0.0.1:0").is_ok());
        assert!(parse("[::1]:0").is_ok());
        assert!(parse("0.0.0.0:0").is_err());
    }
}
