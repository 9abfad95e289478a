//! The command line: types only. What a command does is in `main` and [`crate::app`].

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand};

use crate::identity::RequestId;

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

For a running gateway, through the Unix socket beside its store:
  thingspace-gateway status --config gateway.toml
  thingspace-gateway orders unknown --config gateway.toml

Every key of the configuration can be set by environment too:
  THINGSPACE_GATEWAY__GRPC__LISTEN=127.0.0.1:50052 thingspace-gateway dev

Exit codes: 0 done, 1 failure, 64 wrong usage, 78 wrong configuration.
SIGTERM or SIGINT drains; a second one stops at once.";

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
    #[command(flatten)]
    Operate(Operate),
}

/// What is asked of a running gateway.
#[derive(Debug, Subcommand)]
pub enum Operate {
    /// Say how a running gateway is doing
    #[command(after_help = "\
Example:
  thingspace-gateway status --config gateway.toml")]
    Status(Remote),
    /// Orders that were sent and of which nobody knows what became
    #[command(
        subcommand,
        after_help = "\
Example:
  thingspace-gateway orders unknown --config gateway.toml"
    )]
    Orders(Orders),
}

impl Operate {
    pub fn remote(&self) -> &Remote {
        match self {
            Self::Status(remote)
            | Self::Orders(Orders::Unknown(remote) | Orders::Settle(Settle { remote, .. })) => remote,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Orders {
    /// List them
    #[command(after_help = "\
Example:
  thingspace-gateway orders unknown --config gateway.toml --json")]
    Unknown(Remote),
    /// Say what became of one, as ThingSpace's portal shows it
    Settle(Settle),
}

#[derive(Debug, Args)]
#[command(after_help = "\
The gateway believes you. If an order that was placed is settled as not placed, its key orders again.

Examples:
  thingspace-gateway orders settle ORDER --request-id REQUEST --config gateway.toml
  thingspace-gateway orders settle ORDER --not-placed --config gateway.toml")]
#[command(group(clap::ArgGroup::new("outcome").required(true).args(["request_id", "not_placed"])))]
pub struct Settle {
    /// The order, as `orders unknown` lists it
    pub order: String,
    /// ThingSpace accepted it as this request
    #[arg(long, value_name = "REQUEST", value_parser = request_id)]
    pub request_id: Option<RequestId>,
    /// ThingSpace never placed it: frees its idempotency key
    #[arg(long)]
    pub not_placed: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Which gateway, and how its answer is shown.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("gateway").required(true).args(["config", "socket"])))]
pub struct Remote {
    /// The gateway's configuration file: its socket is beside its store
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The gateway's socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
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
Prints where it listens and grpcurl lines that work when pasted one after the other. What it stores is gone when it ends.

Examples:
  thingspace-gateway dev
  thingspace-gateway dev --listen 127.0.0.1:0     take a free port
  RUST_LOG=debug thingspace-gateway dev           see what it does")]
pub struct Dev {
    /// Loopback address of the API [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR", value_parser = loopback)]
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Accounts      0000123456-00001, 0000123456-00002
Credentials   simulator-key, simulator-secret, simulator-user, simulator-password

Example: a gateway whose credential files hold those is pointed at it with
  thingspace-gateway simulate --listen 127.0.0.1:8090
  THINGSPACE_GATEWAY__THINGSPACE__BASE_URL=http://127.0.0.1:8090/api thingspace-gateway serve --config gateway.toml")]
pub struct Simulate {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
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

impl Cli {
    /// The configuration file, for the commands that take one.
    pub fn config_file(&self) -> Option<&Path> {
        match &self.command {
            Command::Serve(Serve { config }) | Command::Check(Check { config }) => Some(config),
            Command::Operate(operate) => operate.remote().config.as_deref(),
            Command::Dev(_) | Command::Simulate(_) => None,
        }
    }
}

fn request_id(text: &str) -> Result<RequestId, String> {
    RequestId::parse(text).map_err(|invalid| invalid.to_string())
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
        let parse = |address| Cli::try_parse_from(["thingspace-gateway", "dev", "--listen", address]);
        assert!(parse("127.0.0.1:0").is_ok());
        assert!(parse("[::1]:0").is_ok());
        assert!(parse("0.0.0.0:0").is_err());
    }
}
