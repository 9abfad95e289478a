//! What can be asked of a running gateway. What comes of it is in [`crate::control`].

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::identity::{AccountName, RequestId};

/// What is asked of a running gateway.
#[derive(Debug, Subcommand)]
pub enum Operate {
    /// Say how a running gateway is doing
    #[command(after_help = "\
Example:
  thingspace-gateway status --config gateway.toml")]
    Status(Remote),
    /// Let a set of credentials be tried once more
    Unblock(Unblock),
    /// Orders that were sent and of which nobody knows what became
    #[command(
        subcommand,
        after_help = "\
Example:
  thingspace-gateway orders unknown --config gateway.toml"
    )]
    Orders(Orders),
    /// Where ThingSpace sends the results of an account's requests
    #[command(
        subcommand,
        after_help = "\
Example:
  thingspace-gateway callbacks list --config gateway.toml"
    )]
    Callbacks(Callbacks),
    /// Callbacks that nobody understood
    #[command(
        subcommand,
        after_help = "\
Example:
  thingspace-gateway quarantine list --config gateway.toml"
    )]
    Quarantine(Quarantine),
    /// What the gateway remembers
    #[command(
        subcommand,
        after_help = "\
Example:
  thingspace-gateway store accept-loss --config gateway.toml
  thingspace-gateway store restore store.backup --config gateway.toml"
    )]
    Store(Store),
}

impl Operate {
    /// Which gateway is asked. `None`: the command works without one.
    pub fn remote(&self) -> Option<&Remote> {
        Some(match self {
            Self::Store(Store::Restore(_)) => return None,
            Self::Status(remote)
            | Self::Unblock(Unblock { remote, .. })
            | Self::Orders(Orders::Unknown(remote) | Orders::Settle(Settle { remote, .. }))
            | Self::Callbacks(
                Callbacks::List { remote, .. }
                | Callbacks::Register(Register { remote, .. })
                | Callbacks::Deregister(Account { remote, .. })
                | Callbacks::Rotate(Rotate { remote, .. }),
            )
            | Self::Quarantine(Quarantine::List(remote) | Quarantine::Show { remote, .. })
            | Self::Store(Store::AcceptLoss { remote, .. }) => remote,
        })
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
ThingSpace locks a user after five rejected logins in a row, and only Verizon's support unlocks it. So the gateway
stops logins before. They go on without this command once the files hold a password that was not rejected yet.

Each command permits one more login, and the rejections so far go on counting. After four that ThingSpace may have
counted, the command is refused: log in once elsewhere with the right password, which clears ThingSpace's count, and
say so with --force. If the login that follows is not accepted, the rejections from before count again, and the next
--force is refused, because it may repeat a mistake. Then correct the files, log in elsewhere once more with exactly
what they hold, and add --risk-lock.

Examples:
  thingspace-gateway unblock main --config gateway.toml
  thingspace-gateway unblock main --force --config gateway.toml")]
pub struct Unblock {
    /// The name of the set of credentials, as `status` shows it
    #[arg(value_parser = credentials_name)]
    pub name: String,
    /// You have logged in elsewhere with the right password, which cleared what ThingSpace had
    /// counted
    #[arg(long)]
    pub force: bool,
    /// With --force: also if no login was accepted after the last --force. ThingSpace may lock the
    /// user if nobody has logged in elsewhere
    #[arg(long, requires = "force")]
    pub risk_lock: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// What the configuration takes for a name.
fn credentials_name(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !text.is_empty() && text.bytes().all(fits) && !text.bytes().all(|b| b == b'.') {
        Ok(text.to_owned())
    } else {
        Err("must be the name of a [[credentials]] section: letters, digits, '-', '_' and '.'"
            .to_owned())
    }
}

fn order_id(text: &str) -> Result<String, String> {
    // An order's id has the shape of a request's.
    match RequestId::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(invalid) => Err(format!("{invalid}, as `orders unknown` lists it")),
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
A request is confirmed first: ThingSpace has to know it, with exactly the order's devices. That an order was not placed
cannot be confirmed. If it was placed after all, its key orders again.

Examples:
  thingspace-gateway orders settle ORDER --request-id REQUEST --config gateway.toml
  thingspace-gateway orders settle ORDER --not-placed --config gateway.toml
  thingspace-gateway orders settle ORDER --request-id ANOTHER --force --config gateway.toml")]
#[command(group(clap::ArgGroup::new("outcome").required(true).args(["request_id", "not_placed"])))]
pub struct Settle {
    /// The order, as `orders unknown` lists it
    #[arg(value_parser = order_id)]
    pub order: String,
    /// ThingSpace accepted it as this request
    #[arg(long, value_name = "REQUEST", value_parser = RequestId::parse)]
    pub request_id: Option<RequestId>,
    /// ThingSpace never placed it: frees its idempotency key
    #[arg(long)]
    pub not_placed: bool,
    /// Also if ThingSpace cannot be asked or does not confirm it, and in place of an operator's
    /// earlier settlement
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Subcommand)]
pub enum Callbacks {
    /// List what ThingSpace has registered, by service: the host, and whether it is this gateway
    #[command(after_help = "\
Examples:
  thingspace-gateway callbacks list --config gateway.toml
  thingspace-gateway callbacks list 0000123456-00001 --config gateway.toml --json")]
    List {
        /// Only this account [default: every configured one]
        #[arg(value_parser = AccountName::parse)]
        account: Option<AccountName>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Register this gateway for an account, unless it is
    Register(Register),
    /// Take this gateway's registration away, until `callbacks register`
    #[command(after_help = "\
Results are found out by polling from then on. A registration that leads to another is left alone.

Example:
  thingspace-gateway callbacks deregister 0000123456-00001 --config gateway.toml")]
    Deregister(Account),
    /// Register with another user name and password, or with another secret in the path
    Rotate(Rotate),
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is replaced is accepted for callbacks.password_grace, because ThingSpace goes on sending it. If user name and password
come from files, change these first: they are read again. An account that was deregistered is not registered by this.

Examples:
  thingspace-gateway callbacks rotate 0000123456-00001 --config gateway.toml
  thingspace-gateway callbacks rotate 0000123456-00001 --path --config gateway.toml    after the URL got known")]
pub struct Rotate {
    /// One of the configured accounts
    #[arg(value_parser = AccountName::parse)]
    pub account: AccountName,
    /// Replace the secret in the path, not the user name and password
    #[arg(long)]
    pub path: bool,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = "\
An account has one registration for each service: whoever registers takes the results away from whoever did before. So
another's is refused without --force.

Examples:
  thingspace-gateway callbacks register 0000123456-00001 --config gateway.toml
  thingspace-gateway callbacks register 0000123456-00001 --force --config gateway.toml")]
pub struct Register {
    /// One of the configured accounts
    #[arg(value_parser = AccountName::parse)]
    pub account: AccountName,
    /// Also in place of another, and after registering was stopped because of another gateway at
    /// the same URL
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Args)]
pub struct Account {
    /// One of the configured accounts
    #[arg(value_parser = AccountName::parse)]
    pub account: AccountName,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Subcommand)]
pub enum Quarantine {
    /// List them, oldest first
    #[command(after_help = "\
Example:
  thingspace-gateway quarantine list --config gateway.toml --json")]
    List(Remote),
    /// Print the body of one, with *** for the passwords found in it
    #[command(after_help = "\
It holds identifiers of devices in full, and a password where none was recognised.

Example:
  thingspace-gateway quarantine show 7 --config gateway.toml")]
    Show {
        /// As `quarantine list` lists it
        id: u64,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub enum Store {
    /// Put a backup in the place of the embedded store of a gateway that is stopped
    Restore(Restore),
    /// Accept that the store forgot something, and go on without it
    #[command(after_help = "\
A gateway whose store forgot something does nothing until this command: `status` says what is missing. An order whose key
was forgotten is placed a second time if its caller repeats it, so read docs/operations.md first. One replica carries the
command out for all.

Examples:
  thingspace-gateway store accept-loss --config gateway.toml
  thingspace-gateway store accept-loss --restored --config gateway.toml    after a backup was restored")]
    AcceptLoss {
        /// A backup was restored: begin a new epoch even if the gateway noticed no loss
        #[arg(long)]
        restored: bool,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
An order that was placed after the backup is placed a second time if its caller repeats it, so read docs/operations.md first.
The file that is replaced is kept. The restored store begins a new epoch: watches that are resumed begin with a snapshot.

Example:
  thingspace-gateway store restore store.backup --config gateway.toml")]
pub struct Restore {
    /// A copy of a store that was not being written
    pub backup: PathBuf,
    /// The gateway's configuration file, which says where its store is
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Which gateway, and how its answer is shown.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("gateway").required(true).args(["config", "socket"])))]
pub struct Remote {
    /// The gateway's configuration file, which says where its socket is
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The gateway's socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
