//! The other end of the socket: carries a command out and prints what came of it.

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
    Refusal,
    callbacks::{self, Done, How, Registered},
    logins::{self, Unblocked},
    orders::{self, Outcome, Settled, UnknownOrder},
    quarantine::{self, Body as Kept, Quarantined},
    status::{self, Status},
    store,
};
use crate::cli::{
    Account, Callbacks, Operate, Orders, Quarantine, Register, Rotate, Settle, Store, Unblock,
};

/// The longest that a command may take; some ask ThingSpace several times.
const PATIENCE: Duration = Duration::from_mins(2);

/// Of an answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Carries out a command on the gateway with this socket.
pub async fn run(command: &Operate, socket: PathBuf, out: &mut dyn Write) -> anyhow::Result<()> {
    let gateway = Gateway { socket };
    let json = command.remote().is_some_and(|remote| remote.json);
    match command {
        Operate::Status(_) => {
            let status: Status = gateway.get(status::PATH).await?;
            if json { show::json(out, &status) } else { show::status(out, &status) }
        }
        Operate::Unblock(Unblock { name, force, risk_lock, .. }) => {
            let how = logins::Unblock { force: *force, risk_lock: *risk_lock };
            let done: Unblocked = gateway.post(&logins::unblock_path(name), &how).await?;
            if json { show::json(out, &done) } else { show::unblocked(out, name, *force, &done) }
        }
        Operate::Orders(Orders::Unknown(_)) => {
            let orders: Vec<UnknownOrder> = gateway.get(orders::UNKNOWN).await?;
            if json { show::json(out, &orders) } else { show::orders(out, &orders) }
        }
        Operate::Orders(Orders::Settle(settle)) => {
            let Settle { order, request_id, force, .. } = settle;
            let outcome = match request_id {
                Some(id) => Outcome::AcceptedAs(id.to_string()),
                None => Outcome::NotPlaced,
            };
            let settle = orders::Settle { outcome, force: *force };
            let done: Settled = gateway.post(&orders::settle_path(order), &settle).await?;
            if json {
                return show::json(out, &done);
            }
            if let Some(why) = &done.not_confirmed {
                writeln!(out, "Not confirmed: {why}.")?;
            }
            match request_id {
                Some(id) => writeln!(out, "Order {order} was accepted as request {id}.")?,
                None => writeln!(
                    out,
                    "Order {order} was not placed; its idempotency key is free again."
                )?,
            }
            Ok(())
        }
        Operate::Callbacks(command) => on_callbacks(&gateway, command, json, out).await,
        Operate::Quarantine(Quarantine::List(_)) => {
            let kept: Vec<Quarantined> = gateway.get(quarantine::LIST).await?;
            if json { show::json(out, &kept) } else { show::quarantine(out, &kept) }
        }
        Operate::Quarantine(Quarantine::Show { id, .. }) => {
            let kept: Kept = gateway.get(&quarantine::show_path(*id)).await?;
            if json { show::json(out, &kept) } else { show::body(out, &kept.body) }
        }
        Operate::Store(Store::Restore(_)) => bail!("it works without a gateway"),
        Operate::Store(Store::AcceptLoss { restored, .. }) => {
            let body = store::AcceptLoss { restored: *restored };
            let done: store::Acceptance = gateway.post(store::ACCEPT_LOSS, &body).await?;
            if json { show::json(out, &done) } else { show::accepted(out, &done) }
        }
    }
}

async fn on_callbacks(
    gateway: &Gateway,
    command: &Callbacks,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let (account, route, how) = match command {
        Callbacks::List { account, .. } => {
            let path = account.as_ref().map_or_else(
                || callbacks::LIST.to_owned(),
                |account| callbacks::path(callbacks::ACCOUNT, account),
            );
            let accounts: Vec<Registered> = gateway.get(&path).await?;
            return if json {
                show::json(out, &accounts)
            } else {
                show::registered(out, &accounts)
            };
        }
        Callbacks::Register(Register { account, force, .. }) => {
            (account, callbacks::REGISTER, How { force: *force, ..How::default() })
        }
        Callbacks::Deregister(Account { account, .. }) => {
            (account, callbacks::DEREGISTER, How::default())
        }
        Callbacks::Rotate(Rotate { account, path, .. }) => {
            (account, callbacks::ROTATE, How { path: *path, ..How::default() })
        }
    };
    let done: Done = gateway.post(&callbacks::path(route, account), &how).await?;
    if json { show::json(out, &done) } else { show::done(out, account, done, how.path) }
}

struct Gateway {
    socket: PathBuf,
}

impl Gateway {
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
        let Ok(answer) = tokio::time::timeout(PATIENCE, exchange).await else {
            bail!(
                "the gateway on {} does not answer; what it began it goes on with",
                self.socket.display()
            );
        };
        let (status, body) = answer?;
        if status.is_success() {
            return serde_json::from_slice(&body).context("the gateway is of another version");
        }
        match serde_json::from_slice(&body) {
            Ok(Refusal { error }) => bail!(error),
            Err(_) => bail!("the gateway answers {status}; is it of another version?"),
        }
    }
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Body,
) -> anyhow::Result<(http::StatusCode, Vec<u8>)> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "gateway")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!(error))?;
    Ok((status, body.to_bytes().to_vec()))
}

/// Why nobody answers, and what to do about it.
fn unreachable(socket: &Path, error: io::Error) -> anyhow::Error {
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
    fn an_operator_is_told_what_keeps_a_command_from_the_gateway() {
        let told =
            |kind: io::ErrorKind| unreachable(Path::new("/run/gw.sock"), kind.into()).to_string();
        let forbidden = told(io::ErrorKind::PermissionDenied);
        assert!(
            forbidden.contains("/run/gw.sock")
                && forbidden.contains("as the user that runs the gateway")
        );
        assert!(!forbidden.contains("no gateway answers"), "{forbidden}");
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
            assert_eq!(told(kind), "no gateway answers on /run/gw.sock");
        }
    }
}
