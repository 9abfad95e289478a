//! `thingspace-gateway`: one gRPC service that owns eSIM profile downloads through Verizon's
//! ThingSpace.
//!
//! # Bird's eye
//!
//! Callers order a download, ask where it stands, or watch it; the gateway owns the tokens, the
//! polling, the memory and the errors of an upstream that has two kinds of token, no idempotency
//! and answers that come when they come.
//!
//! ```text
//!  callers ── server ── grpc ── requests ── thingspace ── HTTPS ──▶ ThingSpace | simulator
//!                                  │  ▲
//!                           append │  │ follow
//!                                  ▼  │
//!  ThingSpace ──▶ callbacks ─────▶ store
//! ```
//!
//! Everything durable is a *log* (append-only, folded by its readers) or a *cell* (changed by
//! compare-and-swap); see [`store`]. A request is what its log folds to, and nothing else:
//! [`requests::fold::state`] is a pure function, so duplicates, late answers and restarts change nothing,
//! and every replica computes the same revisions.
//!
//! # Code map, in reading order
//!
//! - [`identity`]: accounts, requests, devices and profiles, parsed once at the edge and masked in
//!   print.
//! - [`proto`]: the generated contract and storage format.
//! - [`store`]: the trait, [`store::embedded`] on redb, and [`store::nats`] on NATS JetStream.
//! - [`thingspace`]: the client; two tokens and the guard of the logins, one send path, what each
//!   failure means.
//! - [`requests`]: the domain: [`state`](requests::fold::state) and [`order`](requests::fold::order) fold,
//!   [`hub`](requests::hub) projects, [`orders`](requests::orders) sends,
//!   [`asker`](requests::query::asker) asks, [`poller`](requests::query::poller) asks now and then,
//!   [`withheld`](requests::query::withheld) lets a callback speak first, [`resolve`](requests::orders::resolve)
//!   finds out about orders of unknown fate, [`watch`](requests::watch) tells.
//! - [`callbacks`]: the answers that come by themselves: [`secrets`](callbacks::secrets) prove the
//!   sender, [`parse`](callbacks::parse) reads every shape, [`quarantine`](callbacks::quarantine)
//!   keeps what nobody understands, [`registration`](callbacks::registration) keeps ThingSpace
//!   calling.
//! - [`grpc`]: the three RPCs, thin; the only place that names gRPC codes is its `status`, and its
//!   `edge` sees to it that every call of every service ends in time and every error has a reason.
//! - [`control`]: operator commands on a Unix socket, and their other end.
//! - [`admin`]: probes: whether it lives, whether it can answer.
//! - [`server`], [`telemetry`], [`config`], [`secret_file`], `certificate`, `repeated`, [`cli`],
//!   [`shutdown`]: around it.
//! - [`simulator`]: a ThingSpace good enough to lean on; `dev` runs it, and every test.
//! - [`app`]: the composition root, the only module that knows all others.
//!
//! # Invariants
//!
//! - Dependencies point one way: `control` → `callbacks`; `grpc`, `callbacks`, `control`, `admin` →
//!   `requests` → `thingspace`, `store`. `tonic` is named only in `grpc`, `server`, `telemetry` and
//!   `app`, `reqwest` only in `thingspace` and the `simulator`, `redb` only in `store::embedded`,
//!   `async_nats` only in `store::nats`.
//! - Nothing but [`requests::hub`] writes the projection, and it writes only what it read from the
//!   store.
//! - Before a byte of an order leaves, its order's log and its key's cell are durable. An order
//!   whose fate is unknown is never sent again: there is no code that could.
//! - Before a byte of a login leaves, it is claimed in the guard's cell, which counts at least the
//!   rejections that ThingSpace counts and stops before it locks. No other code logs in.
//! - An order is answered only after `AcceptedAs` and `Accepted` are durable, a callback only after
//!   `CalledBack` is.
//! - There is no task and no queue per watch. What goes upstream depends on the open requests,
//!   never on the number of callers.
//! - UNAVAILABLE is used only where repeating the very call, with its key, is safe. What an
//!   upstream code means is decided in one table, `thingspace::http::code::table`, which `docs/errors.md`
//!   shows.
//! - No token, password or device identity is in a log line, an error or a `Debug` output: secrets
//!   are `secrecy` types, identifiers are [`identity::Digits`].
//! - Every queue, map, body, wait and retry has a bound with a name.
//!
//! # DownloadProfile
//!
//! `grpc::service` checks every field (`grpc::convert`) → [`requests::orders`] takes the key's turn
//! and reads its cell: a key that was used before is answered from there, or settled by its order's
//! log → a bearer and a session, then a turn (`thingspace::client::limit`: a part of the rate and a
//! connection), within the caller's deadline → from here a task of the gateway's own: `Ordered`
//! into the order's log → the cell SENDING → one POST → `AcceptedAs` into the order's log,
//! `Accepted` into the request's → the cell ACCEPTED → the answer, once [`requests::hub`] has
//! folded it. What is not a clear yes or no becomes UNKNOWN, is reported as such, and stays so
//! until there is evidence: a callback that names one of its devices, for a request that has
//! exactly its devices ([`requests::orders::resolve`]), or an operator's word ([`control`]).
//!
//! # GetRequestStatus
//!
//! [`requests::Requests::status`] finds the request in the projection, else in its log, else asks
//! ThingSpace (a request made elsewhere) → an open one is asked about by [`requests::query::asker`], one
//! question per request at a time whoever asks, and what is new is appended and folded → the folded
//! state, in pages.
//!
//! # WatchRequest
//!
//! [`requests::watch::Watch`] is a cursor: a snapshot or the transitions after a resume token, then
//! on each wake-up all transitions not yet given, then the end → `grpc::fragment` cuts them into
//! messages when the reader is ready → heartbeats while it is quiet.
//!
//! # Callback
//!
//! [`server::http`] accepts, bounds and times every connection → the last segment of the path is an
//! account's secret ([`callbacks::secrets`]), or the answer is 404 and nothing is read → the body,
//! bounded and in time → [`callbacks::parse`]: what cannot be understood goes into
//! [`callbacks::quarantine`], and is answered 200 → user name and password, the current or a
//! replaced pair → [`requests::Requests::called_back`] appends `CalledBack` to the request's log,
//! known or not → 200; 503 if that cannot be done in time. From there it is an event like any
//! other: [`requests::hub`] folds it and wakes the watchers.
//!
//! # Login
//!
//! A call without a token boards the flight of its slot (`thingspace::login`) → the credential
//! files, at rest → the guard's cell: a token that somebody else has had meanwhile, or who is
//! asking, or why nobody may (`thingspace::login::guard`) → a claim → one request → the outcome, and the
//! sealed token with it, in one write. New files begin such a flight before the tokens of the old
//! ones are let go.
//!
//! # Start and drain
//!
//! Probes are answered from the first moment. [`requests::hub`] follows the store from the
//! low-water mark and is ready when it has caught up; orders that were accepted when the process
//! died are finished. SIGTERM: not ready → no new connections → watches end UNAVAILABLE with their
//! token → calls and orders finish → callbacks are taken no more → the store closes → telemetry is
//! flushed; see [`app::App::run`].

pub mod admin;
pub mod app;
pub mod callbacks;
mod certificate;
pub mod cli;
pub mod config;
pub mod control;
pub mod grpc;
pub mod identity;
pub mod proto;
mod repeated;
pub mod requests;
pub mod secret_file;
pub mod server;
pub mod shutdown;
pub mod simulator;
pub mod store;
pub mod telemetry;
pub mod thingspace;
