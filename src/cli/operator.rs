//! The commands for operators. [`crate::control`] carries them out, except `store restore`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use crate::{
    config::{is_credentials_name, parse_duration},
    identity::{AccountName, RequestId},
};

/// Builds the end of a help text: an explanation, and commands with a configuration file.
macro_rules! examples {
    ($text:literal => $($command:literal),+) => {
        concat!($text, "\n\n", examples!($($command),+))
    };
    ($($command:literal),+) => {
        concat!("Examples:" $(, "\n  thingspace-gateway ", $command, " --config gateway.toml")+)
    };
}

/// A command for an operator.
#[derive(Debug, Subcommand)]
pub enum OperatorCommand {
    /// Show the state of a running gateway
    #[command(after_help = examples!("status"))]
    Status(GatewayArgs),
    /// Allow one more login with a set of credentials
    Unblock(UnblockArgs),
    /// List what is open, and show a request with its history
    #[command(subcommand, after_help = examples!("requests list"))]
    Requests(RequestsCommand),
    /// List and settle orders of unknown outcome
    #[command(subcommand, after_help = examples!("orders unknown"))]
    Orders(OrdersCommand),
    /// Manage the registrations for ThingSpace's callbacks
    #[command(subcommand, after_help = examples!("callbacks list"))]
    Callbacks(CallbacksCommand),
    /// Show callbacks that could not be read or that named another account
    #[command(subcommand, after_help = examples!("quarantine list"))]
    Quarantine(QuarantineCommand),
    /// Restore a backup of the store, or accept a store loss
    #[command(subcommand, after_help = examples!("store accept-loss"))]
    Store(StoreCommand),
}

impl OperatorCommand {
    /// The gateway that carries the command out. `None` if the command needs none.
    pub fn gateway(&self) -> Option<&GatewayArgs> {
        Some(match self {
            Self::Store(StoreCommand::Restore(_)) => return None,
            Self::Status(gateway)
            | Self::Unblock(UnblockArgs { gateway, .. })
            | Self::Requests(
                RequestsCommand::List(ListArgs { gateway, .. })
                | RequestsCommand::Show(ShowArgs { gateway, .. }),
            )
            | Self::Orders(
                OrdersCommand::Unknown(gateway) | OrdersCommand::Settle(SettleArgs { gateway, .. }),
            )
            | Self::Callbacks(
                CallbacksCommand::List { gateway, .. }
                | CallbacksCommand::Register(RegisterArgs { gateway, .. })
                | CallbacksCommand::Deregister(AccountArgs { gateway, .. })
                | CallbacksCommand::Rotate(RotateArgs { gateway, .. }),
            )
            | Self::Quarantine(
                QuarantineCommand::List(gateway) | QuarantineCommand::Show { gateway, .. },
            )
            | Self::Store(StoreCommand::AcceptLoss { gateway, .. }) => gateway,
        })
    }
}

#[derive(Debug, Args)]
#[command(after_help = examples!("\
ThingSpace locks a user after five rejected logins in a row, and only Verizon's support unlocks it.
So the gateway stops logins earlier. It resumes them without this command as soon as the files
contain a password that was not rejected yet.

Each use of this command allows one more login, and the count of rejected logins stays. After four
logins that ThingSpace may have counted as rejected, the command is refused. Then log in once
elsewhere with the right password, which resets ThingSpace's count, and use --force. If the next
login is not accepted, the gateway restores the earlier count and refuses the next --force, because
the files may still be wrong. Then correct the files, log in elsewhere once more with exactly the
user name and password that they contain, and add --risk-lock."
    => "unblock main", "unblock main --force"))]
pub struct UnblockArgs {
    /// Name of the set of credentials, as shown by `status`
    #[arg(value_parser = credentials_name)]
    pub name: String,
    /// Confirm that you have logged in elsewhere with the right password, which reset ThingSpace's
    /// count
    #[arg(long)]
    pub force: bool,
    /// Allow the login although no login was accepted after the last --force. ThingSpace may lock
    /// the user if you have not logged in elsewhere
    #[arg(long, requires = "force")]
    pub risk_lock: bool,
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

fn credentials_name(text: &str) -> Result<String, &'static str> {
    is_credentials_name(text)
        .then(|| text.to_owned())
        .ok_or("must be the name of a [[credentials]] section: letters, digits, '-', '_' and '.'")
}

/// Accepts the id of an order, which has the same form as the id of a request.
fn order_id(text: &str) -> Result<String, String> {
    let id = RequestId::parse(text).map(|_| text.to_owned());
    id.map_err(|invalid| format!("{invalid}, as shown by `orders unknown`"))
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("must be a number with a unit, for example 90m or 2h")
}

#[derive(Debug, Subcommand)]
pub enum RequestsCommand {
    /// List the open requests and the orders without a known outcome, oldest first
    List(ListArgs),
    /// Show a request: its state, its devices, who watches it, and what happened to it
    Show(ShowArgs),
}

#[derive(Debug, Args)]
#[command(after_help = examples!("\
The states: sending (an order that is being sent), unknown (an order of unknown outcome), pending (a
request without any result), partial (a request with results for some of its devices)."
    => "requests list", "requests list --account 0000123456-00001 --older-than 2h"))]
pub struct ListArgs {
    /// List only this account
    #[arg(long, value_parser = AccountName::parse)]
    pub account: Option<AccountName>,
    /// List only what is at least this old, for example 90m or 2h
    #[arg(long, value_name = "AGE", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// List at most this many; the totals count all
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub limit: usize,
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

#[derive(Debug, Args)]
#[command(after_help = examples!("\
Devices are shown with the last four digits of their identifiers. --reveal shows them completely,
and writes a line into the audit log. Of a long history, the first and the last events are shown."
    => "requests show REQUEST", "requests show REQUEST --reveal --json"))]
pub struct ShowArgs {
    /// Id of the request, as shown by `requests list`
    #[arg(value_parser = RequestId::parse)]
    pub request: RequestId,
    /// Show the complete identifiers of devices; written to the audit log
    #[arg(long)]
    pub reveal: bool,
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

#[derive(Debug, Subcommand)]
pub enum OrdersCommand {
    /// List the orders of unknown outcome
    #[command(after_help = examples!("orders unknown --json"))]
    Unknown(GatewayArgs),
    /// Record the outcome of an order, as ThingSpace's portal shows it
    Settle(SettleArgs),
}

#[derive(Debug, Args)]
#[command(after_help = examples!("\
The gateway asks ThingSpace to confirm a request id: the request must exist and have exactly the
devices of the order. It cannot confirm that an order was not placed. If it was placed after all,
the next call with its key places it a second time."
    => "orders settle ORDER --request-id REQUEST",
       "orders settle ORDER --not-placed",
       "orders settle ORDER --request-id ANOTHER --force"))]
#[command(group(clap::ArgGroup::new("outcome").required(true).args(["request_id", "not_placed"])))]
pub struct SettleArgs {
    /// Id of the order, as shown by `orders unknown`
    #[arg(value_parser = order_id)]
    pub order: String,
    /// ThingSpace accepted the order as this request
    #[arg(long, value_name = "REQUEST", value_parser = RequestId::parse)]
    pub request_id: Option<RequestId>,
    /// ThingSpace did not place the order; frees its idempotency key
    #[arg(long)]
    pub not_placed: bool,
    /// Settle the order even if ThingSpace does not confirm it, or replace an earlier settlement
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

#[derive(Debug, Subcommand)]
pub enum CallbacksCommand {
    /// List the registrations: service, host, and whether the host is this gateway
    #[command(after_help = examples!("callbacks list", "callbacks list 0000123456-00001 --json"))]
    List {
        /// List only this account [default: all configured accounts]
        #[arg(value_parser = AccountName::parse)]
        account: Option<AccountName>,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
    /// Register this gateway for an account, unless it is registered already
    Register(RegisterArgs),
    /// Remove this gateway's registration, until the next `callbacks register`
    #[command(after_help = examples!("\
From then on the gateway gets results by polling only. The registration of another system is left
alone."
    => "callbacks deregister 0000123456-00001"))]
    Deregister(AccountArgs),
    /// Register with a new user name and password, or with a new path secret
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
#[command(after_help = examples!("\
The old values are accepted for callbacks.password_grace, because ThingSpace uses them for a while.
If user name and password come from files, change the files first: they are read again. An account
that was deregistered stays deregistered."
    => "callbacks rotate 0000123456-00001", "callbacks rotate 0000123456-00001 --path"))]
pub struct RotateArgs {
    /// A configured account
    #[arg(value_parser = AccountName::parse)]
    pub account: AccountName,
    /// Replace the path secret instead of user name and password, for example after the URL leaked
    #[arg(long)]
    pub path: bool,
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

#[derive(Debug, Args)]
#[command(after_help = examples!("\
An account has one registration for each service, and a new registration replaces the old one. So
the gateway replaces the registration of another system only with --force."
    => "callbacks register 0000123456-00001", "callbacks register 0000123456-00001 --force"))]
pub struct RegisterArgs {
    /// A configured account
    #[arg(value_parser = AccountName::parse)]
    pub account: AccountName,
    /// Replace the registration of another system, also after this gateway stopped registering
    /// because another gateway uses the same URL
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

#[derive(Debug, Args)]
pub struct AccountArgs {
    /// A configured account
    #[arg(value_parser = AccountName::parse)]
    pub account: AccountName,
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// List the callbacks in quarantine, oldest first
    #[command(after_help = examples!("quarantine list --json"))]
    List(GatewayArgs),
    /// Print the body of a callback, with *** for the passwords that were recognised
    #[command(after_help = examples!("\
The body contains complete device identifiers, and a password if it was not recognised."
    => "quarantine show 7"))]
    Show {
        /// Id of the callback, as shown by `quarantine list`
        id: u64,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Replace the embedded store of a stopped gateway with a backup
    Restore(RestoreArgs),
    /// Accept that the store lacks something that it had, and continue without it
    #[command(after_help = examples!("\
After a store loss the gateway does nothing until this command; `status` shows what is missing. An
order whose key is lost is placed a second time if its caller repeats the call, so read
docs/operations.md first. One replica carries the command out for all."
    => "store accept-loss", "store accept-loss --restored"))]
    AcceptLoss {
        /// Begin a new epoch even if the gateway noticed no loss, because a backup was restored
        #[arg(long)]
        restored: bool,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
}

#[derive(Debug, Args)]
#[command(after_help = examples!("\
An order that was placed after the backup is placed a second time if its caller repeats the call,
so read docs/operations.md first. The replaced file is kept. The restored store begins a new epoch:
resumed watches begin with a snapshot."
    => "store restore store.backup"))]
pub struct RestoreArgs {
    /// The backup: a copy of the store's file that was made while no gateway wrote it
    pub backup: PathBuf,
    /// The gateway's configuration file, for the path of its store
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Which running gateway carries out a command, and how the result is printed.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("gateway").required(true).args(["config", "socket"])))]
pub struct GatewayArgs {
    /// The gateway's configuration file, for the path of its socket
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The gateway's socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
