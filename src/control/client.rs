//! The client of the control socket.

mod show;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use axum::body::Body;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{
    ErrorBody, callbacks,
    callbacks::{ProbeResponse, RegistrationRequest},
    logins, orders,
    orders::{SettleRequest, SettledOutcome},
    quarantine, requests, status,
    status::StatusResponse,
    store,
};
use crate::cli::{
    AccountArgs, CallbacksCommand, OperatorCommand, OrdersCommand, QuarantineCommand, RegisterArgs,
    RequestsCommand, RotateArgs, SettleArgs, StoreCommand, UnblockArgs,
};
use crate::identity::AccountName;
pub(crate) use show::escape;

/// The longest time for a command. Some commands call ThingSpace several times.
const TIMEOUT: Duration = Duration::from_mins(2);

/// The limit for a response, in bytes.
const MAX_RESPONSE: usize = 64 << 20;

/// Sends a command to the gateway with this socket, and prints the result.
pub async fn run(
    command: &OperatorCommand,
    socket: PathBuf,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let client = SocketClient { socket };
    let json = command.gateway().is_some_and(|gateway| gateway.json);
    let out = &mut Printer { out, json };
    match command {
        OperatorCommand::Status(_) => out.print(&client.get(status::PATH).await?, show::status),
        OperatorCommand::Unblock(UnblockArgs { name, force, risk_lock, .. }) => {
            let request = logins::UnblockRequest { force: *force, risk_lock: *risk_lock };
            let response = client.post(&logins::unblock_path(name), &request).await?;
            out.print(&response, |out, response| show::unblocked(out, name, *force, response))
        }
        OperatorCommand::Requests(RequestsCommand::List(args)) => {
            let request = requests::ListRequest {
                account: args.account.clone(),
                min_age_seconds: args.older_than.map_or(0, |age| age.as_secs()),
                limit: args.limit,
            };
            out.print(&client.post(requests::LIST, &request).await?, show::open)
        }
        OperatorCommand::Requests(RequestsCommand::Show(args)) => {
            let request = requests::ShowRequest { reveal: args.reveal };
            let path = requests::show_path(&args.request);
            out.print(&client.post(&path, &request).await?, show::request)
        }
        OperatorCommand::Orders(OrdersCommand::Unknown(_)) => {
            out.print(&*client.get::<Vec<_>>(orders::UNKNOWN).await?, show::orders)
        }
        OperatorCommand::Orders(OrdersCommand::Settle(args)) => {
            let SettleArgs { order, request_id, force, .. } = args;
            let outcome = match request_id {
                Some(id) => SettledOutcome::AcceptedAs(id.to_string()),
                None => SettledOutcome::NotPlaced,
            };
            let request = SettleRequest { outcome, force: *force };
            let response = client.post(&orders::settle_path(order), &request).await?;
            out.print(&response, |out, response| {
                show::settled(out, order, request_id.as_ref(), response)
            })
        }
        OperatorCommand::Callbacks(command) => run_callbacks(&client, command, out).await,
        OperatorCommand::Quarantine(QuarantineCommand::List(_)) => {
            out.print(&*client.get::<Vec<_>>(quarantine::LIST).await?, show::quarantine)
        }
        OperatorCommand::Quarantine(QuarantineCommand::Show { id, .. }) => {
            out.print(&client.get(&quarantine::show_path(*id)).await?, show::body)
        }
        OperatorCommand::Store(StoreCommand::Restore(_)) => {
            bail!("store restore works without a gateway")
        }
        OperatorCommand::Store(StoreCommand::AcceptLoss { restored, .. }) => {
            let request = store::AcceptLossRequest { restored: *restored };
            out.print(&client.post(store::ACCEPT_LOSS, &request).await?, show::accepted)
        }
    }
}

async fn run_callbacks(
    client: &SocketClient,
    command: &CallbacksCommand,
    out: &mut Printer<'_>,
) -> anyhow::Result<()> {
    let none = RegistrationRequest::default();
    let (account, route, request) = match command {
        CallbacksCommand::List { account, .. } => {
            let path = account.as_ref().map_or_else(
                || callbacks::LIST.to_owned(),
                |account| callbacks::path(callbacks::ACCOUNT, account),
            );
            return out.print(&*client.get::<Vec<_>>(&path).await?, show::registrations);
        }
        CallbacksCommand::Register(RegisterArgs { account, force, .. }) => {
            (account, callbacks::REGISTER, RegistrationRequest { force: *force, ..none })
        }
        CallbacksCommand::Deregister(AccountArgs { account, .. }) => {
            (account, callbacks::DEREGISTER, none)
        }
        CallbacksCommand::Rotate(RotateArgs { account, path, .. }) => {
            (account, callbacks::ROTATE, RegistrationRequest { path: *path, ..none })
        }
    };
    let response = client.post(&callbacks::path(route, account), &request).await?;
    out.print(&response, |out, response| show::registration(out, account, *response, request.path))
}

/// Prints a result as JSON or as text.
struct Printer<'a> {
    out: &'a mut dyn Write,
    json: bool,
}

impl Printer<'_> {
    fn print<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        show: impl FnOnce(&mut dyn Write, &T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if self.json { show::json(self.out, value) } else { show(self.out, value) }
    }
}

/// Returns the state of the gateway with this socket. If there is none, the error is an
/// [`io::Error`] with a context.
pub(crate) async fn status(socket: &Path) -> anyhow::Result<StatusResponse> {
    SocketClient { socket: socket.to_owned() }.get(status::PATH).await
}

/// Lets the gateway find out whether its public address for callbacks leads to it.
pub(crate) async fn probe_callbacks(
    socket: &Path,
    account: &AccountName,
) -> anyhow::Result<ProbeResponse> {
    let path = callbacks::path(callbacks::PROBE, account);
    SocketClient { socket: socket.to_owned() }.get(&path).await
}

struct SocketClient {
    socket: PathBuf,
}

impl SocketClient {
    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, Body::empty()).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.call(Method::POST, path, Body::from(serde_json::to_vec(body)?)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> anyhow::Result<T> {
        let exchange = exchange(&self.socket, method, path, body);
        let Ok(response) = tokio::time::timeout(TIMEOUT, exchange).await else {
            bail!(
                "no response from the gateway on {}; it may still execute the command",
                self.socket.display()
            );
        };
        let (status, body) = response?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .context("cannot read the gateway's answer; the gateway may have another version");
        }
        match serde_json::from_slice(&body) {
            Ok(ErrorBody { error }) => bail!(error),
            Err(_) => bail!("the gateway answers {status}; it may have another version"),
        }
    }
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Body,
) -> anyhow::Result<(http::StatusCode, Vec<u8>)> {
    let stream =
        UnixStream::connect(socket).await.map_err(|error| cannot_connect(socket, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "gateway")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!(error))?;
    Ok((status, body.to_bytes().to_vec()))
}

/// Explains why the client cannot connect.
fn cannot_connect(socket: &Path, error: io::Error) -> anyhow::Error {
    let socket = socket.display();
    let what = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("may not open {socket}: run this command as the user that runs the gateway")
        }
        _ => format!("no gateway answers on {socket}"),
    };
    anyhow::Error::new(error).context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_why_the_client_cannot_connect() {
        let message = |kind: io::ErrorKind| {
            cannot_connect(Path::new("/run/gw.sock"), kind.into()).to_string()
        };
        let forbidden = message(io::ErrorKind::PermissionDenied);
        assert!(
            forbidden.contains("/run/gw.sock")
                && forbidden.contains("as the user that runs the gateway")
        );
        assert!(!forbidden.contains("no gateway answers"), "{forbidden}");
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
            assert_eq!(message(kind), "no gateway answers on /run/gw.sock");
        }
    }
}
