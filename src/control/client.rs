//! The other end of the socket: carries a command out and prints what came of it.

use std::{
    fmt::Write as _,
    io::Write,
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
    orders::{self, Outcome, UnknownOrder},
    status::{self, Status},
};
use crate::cli::{Operate, Orders, Settle};

/// The longest that a command may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Of an answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Carries out a command on the gateway with this socket.
pub async fn run(command: &Operate, socket: PathBuf, out: &mut dyn Write) -> anyhow::Result<()> {
    let gateway = Gateway { socket };
    let json = command.remote().json;
    match command {
        Operate::Status(_) => {
            let status: Status = gateway.get(status::PATH).await?;
            if json { print_json(out, &status) } else { print_status(out, &status) }
        }
        Operate::Orders(Orders::Unknown(_)) => {
            let orders: Vec<UnknownOrder> = gateway.get(orders::UNKNOWN).await?;
            if json { print_json(out, &orders) } else { print_orders(out, &orders) }
        }
        Operate::Orders(Orders::Settle(settle)) => {
            let Settle { order, request_id, .. } = settle;
            let outcome = match request_id {
                Some(id) => Outcome::AcceptedAs(id.to_string()),
                None => Outcome::NotPlaced,
            };
            let done: serde_json::Value = gateway.post(&orders::settle_path(order), &outcome).await?;
            if json {
                return print_json(out, &done);
            }
            match request_id {
                Some(id) => writeln!(out, "Order {order} was accepted as request {id}.")?,
                None => writeln!(out, "Order {order} was not placed; its idempotency key is free again.")?,
            }
            Ok(())
        }
    }
}

struct Gateway {
    socket: PathBuf,
}

impl Gateway {
    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, Body::empty()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.call(Method::POST, path, Body::from(serde_json::to_vec(body)?)).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> anyhow::Result<T> {
        let exchange = exchange(&self.socket, method, path, body);
        let Ok(answer) = tokio::time::timeout(PATIENCE, exchange).await else {
            bail!("the gateway on {} does not answer", self.socket.display());
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
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("no gateway answers on {}", socket.display()))?;
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

fn print_json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

fn print_status(out: &mut dyn Write, status: &Status) -> anyhow::Result<()> {
    let rows = [
        ("ready", if status.ready { "yes" } else { "no" }.to_owned()),
        ("store", status.store.display().to_string()),
        ("open requests", status.open_requests.to_string()),
        ("open devices", status.open_devices.to_string()),
        ("unknown orders", status.unknown_orders.to_string()),
        ("finished by callback", status.finished_by_callback.to_string()),
        ("finished by poll", status.finished_by_poll.to_string()),
    ];
    print_table(out, &rows.map(|(name, value)| [name.to_owned(), value]))
}

fn print_orders(out: &mut dyn Write, orders: &[UnknownOrder]) -> anyhow::Result<()> {
    if orders.is_empty() {
        return Ok(writeln!(out, "What became of every order is known.")?);
    }
    let head = ["ORDER", "ACCOUNT", "SENT", "DEVICES"].map(str::to_owned);
    let rows = orders.iter().map(|order| {
        [
            order.order_id.clone(),
            order.account.clone(),
            format!("{:.0}", order.sent_time),
            order.devices.to_string(),
        ]
    });
    print_table(out, &std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn print_table<const N: usize>(out: &mut dyn Write, rows: &[[String; N]]) -> anyhow::Result<()> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:width$}  ")?;
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
