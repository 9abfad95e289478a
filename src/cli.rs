//! The command line: types only. What a command does is in `main` and [`crate::app`].

mod operate;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand};

pub use operate::{
    Account, Callbacks, Operate, Orders, Quarantine, Register, Remote, Restore, Rotate, Settle,
    Store, Unblock,
};

/// One gRPC service that owns eSIM profile downloads through Verizon's ThingSpace.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thingspace-gateway dev                          try it: no account, no set-up
  thingspace-gateway check --config gateway.toml  look for mistakes
  thingspace-gateway serve --config gateway.toml

For a running gateway, through its Unix socket:
  thingspace-gateway status --config gateway.toml
  thingspace-gateway orders unknown --config gateway.toml
  thingspace-gateway callbacks list --config gateway.toml
  thingspace-gateway quarantine list --config gateway.toml

For one that is stopped:
  thingspace-gateway store restore store.backup --config gateway.toml

Every key of the configuration can be set by environment too:
  THINGSPACE_GATEWAY__GRPC__LISTEN=127.0.0.1:50052 thingspace-gateway dev

Exit codes: 0 done, 1 failure, 64 wrong usage, 78 wrong configuration.
SIGTERM, SIGINT or SIGHUP drains; a second one stops at once.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway
    Serve(Serve),
    /// Run a gateway and a simulated ThingSpace together, on loopback
    Dev(Dev),
    /// Run a simulated ThingSpace alone
    Simulate(Simulate),
    /// Print the configuration that would be used, or everything that is wrong with it
    Check(Check),
    /// Ask a running gateway over gRPC whether it can answer calls
    Health(Health),
    #[command(flatten)]
    Operate(Operate),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  thingspace-gateway serve --config /etc/thingspace-gateway/gateway.toml

A smallest file:
  [store]
  path = \"/var/lib/thingspace-gateway/store.redb\"

  [[credentials]]
  name = \"main\"
  accounts = [\"0000123456-00001\"]
  key_file = \"/etc/thingspace-gateway/main/key\"
  secret_file = \"/etc/thingspace-gateway/main/secret\"
  username_file = \"/etc/thingspace-gateway/main/username\"
  password_file = \"/etc/thingspace-gateway/main/password\"")]
pub struct Serve {
    /// The configuration file (TOML); src/config.default.toml lists every key
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Prints where it listens and grpcurl lines that work when pasted one after the other. Callbacks are taken. What it stores
is gone when it ends, unless --store names a file for it; the simulated ThingSpace forgets everything in any case.

Examples:
  thingspace-gateway dev
  thingspace-gateway dev --store dev.redb         keep requests and keys for the next start
  thingspace-gateway dev --listen 127.0.0.1:0     take a free port
  RUST_LOG=debug thingspace-gateway dev           see what it does")]
pub struct Dev {
    /// Loopback address of the API; probes are then answered on any free port [default:
    /// 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR", value_parser = loopback)]
    pub listen: Option<SocketAddr>,
    /// Keep what is stored in this file
    #[arg(long, value_name = "PATH")]
    pub store: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Accounts      0000123456-00001, 0000123456-00002
Credentials   simulator-key, simulator-secret, simulator-user, simulator-password

Example: a gateway whose credential files hold those is pointed at it with
  thingspace-gateway simulate --listen 127.0.0.1:8090
  THINGSPACE_GATEWAY__THINGSPACE__BASE_URL=http://127.0.0.1:8090/api thingspace-gateway serve --config gateway.toml

Example: the next order is carried out, and its answer is lost
  thingspace-gateway simulate --control 127.0.0.1:8091
  curl -d '{\"endpoint\": \"download\", \"when\": \"after_effect\", \"answer\": \"drop\", \"times\": 1}' 127.0.0.1:8091/faults
  curl 127.0.0.1:8091        everything else that can be controlled")]
pub struct Simulate {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// Address of the control API, for tests: faults, outcomes, what happened; without
    /// authentication
    #[arg(long, value_name = "ADDR")]
    pub control: Option<SocketAddr>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Reads the file and the environment as serve does, and looks whether the files named there can be read. Nothing is sent
and no secret is printed. Exit code 78 if anything is wrong.

Example:
  thingspace-gateway check --config gateway.toml")]
pub struct Check {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit code 0 if it can, 1 if not or if nobody answers within 5 s.

Example:
  thingspace-gateway health --address thingspace-gateway.esim.svc:50051")]
pub struct Health {
    /// Where the API is, HOST:PORT, plaintext
    #[arg(long, value_name = "ADDR")]
    pub address: String,
}

impl Cli {
    /// The configuration file, for the commands that go by all of it.
    pub fn config_file(&self) -> Option<&Path> {
        match &self.command {
            Command::Serve(Serve { config }) | Command::Check(Check { config }) => Some(config),
            Command::Dev(_) | Command::Simulate(_) | Command::Health(_) | Command::Operate(_) => {
                None
            }
        }
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "must be ADDRESS:PORT, for example 127.0.0.1:0".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("dev has no authentication: it listens on loopback only".to_owned())
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
    fn dev_stays_on_loopback() {
        let parse =
            |address| Cli::try_parse_from(["thingspace-gateway", "dev", "--listen", address]);
        assert!(parse("127.0.0.1:0").is_ok());
        assert!(parse("[::1]:0").is_ok());
        assert!(parse("0.0.0.0:0").is_err());
    }
}
