//! A gRPC service in front of Verizon's ThingSpace REST API for eSIM profile downloads.
//!
//! Start here. `README.md` has the promises, and `docs/glossary.md` the terms.
//!
//! # Overview
//!
//! Callers order a download, get its status, or watch it. The gateway does what ThingSpace leaves
//! to its callers: it owns two kinds of token, places each order at most once, polls, receives
//! callbacks, and turns every failure into an error that says what to do.
//!
//! ```text
//!  callers ── gRPC ──▶ server ─▶ grpc ─▶ requests ─▶ thingspace ── HTTPS ──▶ ThingSpace
//!                                         │   ▲                              or simulator
//!                                  append │   │ follow
//!                                         ▼   │
//!  ThingSpace ── HTTPS ──▶ callbacks ──▶ store
//! ```
//!
//! Everything durable is a *log* (append-only) or a *cell* (changed by compare-and-swap); see
//! [`store`]. The state of a request is computed from its log, and from nothing else, by a pure
//! function: the [`fold`](requests::fold). So duplicates, late answers and restarts do no harm, and
//! every replica computes the same revisions.
//!
//! # Map of the code, in reading order
//!
//! - [`identity`]: accounts, requests and devices, parsed once and masked when printed.
//! - [`proto`]: the generated API and storage format.
//! - [`store`]: the trait of a store, [`store::embedded`] in one file (redb), and [`store::nats`]
//!   on NATS JetStream.
//! - [`thingspace`]: the client of ThingSpace. `http` sends one request and decides what its answer
//!   means, `login` owns the two tokens and the login guard, `client` has a function for each
//!   endpoint, with limits and retries.
//! - [`requests`]: the domain. [`fold`](requests::fold) computes states, [`hub`](requests::hub)
//!   keeps open requests in memory, `orders` places and settles orders, `query` sends status
//!   queries and polls, [`watch`](requests::watch) streams transitions, `inspect` shows operators
//!   what is open.
//! - [`callbacks`]: the listener for ThingSpace's callbacks, its secrets, registration and
//!   quarantine.
//! - `auth`: who calls, and what each caller may do.
//! - [`grpc`]: the three RPCs, and the only place that names gRPC codes (`status`).
//! - [`control`], [`cli`]: operator commands on a Unix socket, and the command line. [`doctor`]:
//!   what is wrong with a configuration, its surroundings or the running gateway.
//! - [`admin`], [`server`], [`telemetry`], [`config`], [`secret_file`], [`shutdown`],
//!   `certificate`, `tls_client`, `log_throttle`, `lock`, `backoff`, `crypto`: probes, listeners,
//!   logs and traces, configuration, files, signals, and helpers.
//! - [`simulator`]: a ThingSpace over real HTTP, for `dev` and for every test.
//! - [`app`]: constructs everything and connects it. Only it depends on all other modules.
//!
//! # Where each promise is decided
//!
//! The numbers are those of the README. A path such as `requests::orders::Orders::key_state` is the
//! method `key_state` of `Orders`, in `src/requests/orders.rs` or in a file of the folder of that
//! name.
//!
//! 1. **One owner of the tokens.** In a process all callers wait for one renewal
//!    (`thingspace::login::slot::Slot::get`). All replicas compete for one claim
//!    (`thingspace::login::vault::Vault::claim`). `thingspace::client::exchange` renews a token
//!    that ThingSpace refused and repeats the call.
//! 2. **The account is never locked.** `thingspace::login::guard::next` allows or refuses each
//!    attempt, `thingspace::login::guard::report` counts it, and
//!    `thingspace::login::guard::unblock` says what an operator may allow.
//! 3. **No order is placed twice.** `requests::orders::Orders::key_state` decides what a key
//!    allows: an order with an unknown outcome is never sent again. An order is repeated only if
//!    `thingspace::http::verdict::order::judge_order` is certain that it was not executed, or if no
//!    byte was sent (`requests::orders::sending::send`). Evidence and operators settle an unknown
//!    order in `requests::orders::resolve`.
//! 4. **No acknowledged fact is lost.** `requests::orders::sending::store_until_stored` stores that
//!    an order was accepted before the caller learns it. `requests::called_back` stores a callback
//!    before its 200.
//! 5. **A watcher misses nothing.** `requests::watch::Watch::next` continues from its cursor, and
//!    `requests::fold::state::Request::apply` numbers the transitions. `requests::watch::fits`
//!    decides whether a resume token is valid.
//! 6. **A thousand watchers cost one poll.** One replica polls
//!    (`requests::query::poller::Poller::claim`), and one query per request is in flight
//!    (`requests::query::status_queries::StatusQueries::refresh`).
//! 7. **Errors say what to do.** `grpc::status` chooses code and reason, and
//!    `thingspace::http::code::table` says what ThingSpace's codes mean. `identity::Digits`
//!    prints masked. Secrets are `secrecy` types, which print nothing.
//! 8. **Nobody gets in by default.** `auth::Authenticator::caller` finds out who calls, and
//!    `auth::Policy::allows` decides what the caller may do. `grpc::authenticate` and
//!    `grpc::authorize` ask them before a message is decoded. `config::validate::auth` refuses to
//!    serve the API beyond loopback without authentication and TLS. `telemetry::audit` writes the
//!    audit log.
//! 9. **Load is bounded.** Callers: `grpc::limits`. Open devices:
//!    `requests::orders::Orders::reserve`. Rate and connections to ThingSpace:
//!    `thingspace::client::limit`. Order of the accounts: `thingspace::client::limit::queue`.
//!    Memory: `requests::hub::closed`, `requests::hub::history`, `requests::hub::snapshots`.
//!    Listeners: `server`. Callbacks: `callbacks::bodies`, `callbacks::quarantine::quota`.
//!    Messages: `grpc::receive`. Waits of callers: `grpc::deadline`. Writes: `store::reserve`.
//! 10. **An operator can see what is wrong.** Readiness: `requests::readiness`. Logins:
//!     `thingspace::login::health`. The commands `status` and `requests`: `control::status`,
//!     `control::requests`. What is wrong around the gateway: `doctor`. Metrics:
//!     `telemetry::names`, with the gauges in `app::gauges`.
//!
//! # What always holds
//!
//! - Dependencies point one way: `control` → `callbacks`; `grpc`, `callbacks`, `control`, `admin` →
//!   `requests` → `thingspace`, `store`. `doctor` uses `control` and what is below it. `tonic` is
//!   named only in `grpc`, `telemetry` and `app`, `reqwest` only in `thingspace`, `auth`,
//!   `telemetry` and the `simulator`, `redb` only in `store::embedded`, `async_nats` only in
//!   `store::nats`.
//! - Only [`requests::hub`] changes the projection, and only by what it reads from the store.
//! - Before a byte of an order is sent, the order's log and its key's cell are durable.
//! - Before a byte of a login is sent, the login guard's cell has a claim for it. No other code
//!   logs in.
//! - There is no task and no queue per watch.
//! - UNAVAILABLE is returned only if repeating the same call with its key is safe.
//! - Every queue, map, body, wait and retry has a named limit.
//!
//! # The path of a call
//!
//! **Every call.** `server::http2` accepts its stream, and sends the response as the caller reads
//! it. `grpc::gate` refuses what is not gRPC. `grpc::authenticate` finds out who calls.
//! `grpc::limits` gives a permit, which the response holds until it has ended. `grpc::authorize`
//! refuses a caller that may not call the method. `grpc::receive` receives the message, and
//! `grpc::middleware` enforces the deadline. The method refuses an account that the caller may not
//! use, before anything is looked up.
//!
//! **DownloadProfile.** `grpc::convert` checks every field. `requests::orders` reads the key's
//! cell: a key that was used before is answered from there, or from its order's log. A new order
//! waits for its tokens and a permit, within the caller's deadline. Then a task of the gateway,
//! which no caller can cancel, places it. The task appends `Ordered` to the order's log, sets the
//! cell to SENDING, sends one POST, appends `AcceptedAs` to the order's log and `Accepted` to the
//! request's, sets the cell to ACCEPTED, and answers when [`requests::hub`] has folded `Accepted`.
//! If the outcome is unknown, the cell becomes UNKNOWN until the order is settled
//! (`requests::orders::resolve`). An operator settles it, or a callback for one of its
//! devices does, if the callback's request has exactly the order's devices.
//!
//! **GetRequestStatus.** [`Requests::status`](requests::Requests::status) finds the request in the
//! projection, in its log, or with a status query to ThingSpace (an external request). If the known
//! state of an open request is too old, `query` sends a status query. A new
//! result is appended and folded. The caller gets the folded state, in pages.
//!
//! **WatchRequest.** [`Watch`](requests::watch::Watch) is a cursor. It returns a snapshot or the
//! transitions after a resume token, then all later transitions, then the end. While nothing
//! happens, it returns heartbeats. `grpc::fragment` cuts the transitions into messages when the
//! reader is ready.
//!
//! **Callback.** [`server::http1`] accepts the connection within its limits. If the last segment of
//! the path is not an account's secret ([`callbacks::secrets`]), the answer is 404 and the body is
//! not read. [`callbacks::parse`] reads the body. A body that cannot be read, or that names another
//! account, goes to the [`quarantine`](callbacks::quarantine). User name and password are checked.
//! [`Requests::called_back`](requests::Requests::called_back) appends `CalledBack` to the request's
//! log, and the answer is 200, or 503 if that takes too long. [`requests::hub`] folds the event and
//! wakes the watchers.
//!
//! **Login.** A call that lacks a token waits for the current renewal of that token, or begins one
//! (`thingspace::login`). The renewal reads the credential files and the login guard's cell. The
//! cell has a token that another replica got, or allows an attempt, or says why no attempt is
//! allowed. The gateway claims an attempt, sends it once, and stores its outcome and the sealed
//! token in one write. New credentials in the files are tried in the same way before the old tokens
//! are dropped.
//!
//! **Start and drain.** Probes are answered from the start. [`requests::hub`] follows the
//! store from the low-water mark and is ready when it has caught up. If a process died after it
//! stored that an order was accepted, the order's request and key are completed now. SIGTERM begins
//! the drain ([`app::App::run`]): the gateway is not ready and accepts no new connections, watches
//! end UNAVAILABLE with their token, calls and orders finish, callbacks are accepted until just
//! before the store closes, and telemetry is flushed.

mod admin;
pub mod app;
mod auth;
mod backoff;
pub mod callbacks;
mod certificate;
pub mod cli;
pub mod config;
pub mod control;
mod crypto;
pub mod doctor;
mod grpc;
pub mod identity;
mod lock;
mod log_throttle;
pub mod proto;
mod reload;
pub mod requests;
mod secret_file;
mod server;
pub mod shutdown;
pub mod simulator;
pub mod store;
pub mod telemetry;
pub mod thingspace;
mod tls_client;
