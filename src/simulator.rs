//! A ThingSpace good enough to lean on, over real HTTP: what `dev` and `simulate` run, and what
//! every test talks to.
//!
//! It speaks OAuth 2.0 and UWS sessions, takes orders for Global profiles, tells their status and
//! calls back, as Verizon's pages say and in the awkward ways that its users met. Where the pages
//! are silent, [`Options`] choose. Its JSON is its own: it shares no wire type with the client, so
//! that a wrong field name cannot pass unseen.
//!
//! It never repairs what it is sent, never orders anything by itself, and keeps everything it was
//! told until it ends: the [`Ledger`] is what really happened upstream, whatever the gateway
//! believes.
//!
//! Stopping it is a power cut: every connection breaks, whatever waits is never done.
//!
//! In [`Mode::Auto`] the last digit of a device's ICCID (of its EID, where it has no ICCID) decides
//! its fate:
//!
//! | digit | fate |
//! |---|---|
//! | 0 to 4 | Success, `after` the order |
//! | 5, 6 | Success, 2 × `after` |
//! | 7 | Success, 4 × `after` |
//! | 8 | Failed, `after` the order |
//! | 9 | Success, 10 × `after` |

mod callbacks;
mod connection;
pub mod control;
mod faults;
mod handle;
mod ledger;
mod order;
mod refusal;
mod requests;
mod routes;
mod shape;
mod state;
#[cfg(test)]
mod tests;
mod tokens;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::http::StatusCode;
use secrecy::SecretString;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::identity::AccountName;

pub use callbacks::{
    CallbackOptions, CallbackShape, Case, Ids, Kinds, Names, Passwords, Registered, Retries,
    SERVICE, Sender, Sequence,
};
pub use faults::{Endpoint, Fault, Gate, What, When};
pub use handle::Handle;
pub use ledger::{Attempts, Ledger, PlacedOrder};
pub use requests::Outcome;
pub use shape::{Identifiers, List, Overall, Shape, Words};

/// How the simulator behaves. The defaults are for a laptop; the credentials among them open
/// nothing else.
#[derive(Debug, Clone)]
pub struct Options {
    pub listen: SocketAddr,
    pub mode: Mode,
    /// The accounts of the user.
    pub accounts: Vec<AccountName>,
    /// Accounts that exist but are not the user's.
    pub foreign_accounts: Vec<AccountName>,
    /// The plans that exist; empty: every plan does.
    pub service_plans: Vec<String>,
    pub key: String,
    pub secret: SecretString,
    pub username: String,
    pub password: SecretString,
    /// From the first issue: every token request within it gets the same token.
    pub bearer_lifetime: Duration,
    /// Whether `expires_in` of a token handed out again is what is left of it, or always the whole
    /// lifetime.
    pub expires_in_counts_down: bool,
    /// How long a session lives unused.
    pub session_idle: Duration,
    /// How long a session lives although it is used.
    pub session_lifetime: Option<Duration>,
    pub session_refusal: SessionRefusal,
    /// A login ends the user's earlier sessions.
    pub single_session: bool,
    /// How a rejected login is answered; what the real status is, nobody wrote down.
    pub login_refusal: StatusCode,
    /// The code of a rejected login, after `UnifiedWebService.`.
    pub login_refusal_code: &'static str,
    /// How long a new request id is unknown to the status endpoint.
    pub readable_after: Duration,
    /// Write `fault.code` and three-digit `errorCode`s as JSON numbers.
    pub numeric_codes: bool,
    pub shape: Shape,
    pub callbacks: CallbackOptions,
}

/// When devices finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By themselves, as the module's table says.
    Auto { after: Duration },
    /// When told to through the [`Handle`].
    Manual,
}

/// How a session that is missing, unknown or over is refused: users saw each of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRefusal {
    /// With an `errorCode` that contains `.SessionToken.`
    Coded(StatusCode),
    /// Without a body.
    Bare(StatusCode),
}

impl Default for Options {
    fn default() -> Self {
        let account =
            |name| AccountName::parse(name).expect("a literal in the shape of an account name");
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            mode: Mode::Auto { after: Duration::from_secs(5) },
            accounts: vec![account("0000123456-00001"), account("0000123456-00002")],
            foreign_accounts: vec![account("0000999999-00001")],
            service_plans: Vec::new(),
            key: "simulator-key".into(),
            secret: "simulator-secret".into(),
            username: "simulator-user".into(),
            password: "simulator-password".into(),
            bearer_lifetime: Duration::from_hours(1),
            expires_in_counts_down: true,
            session_idle: Duration::from_mins(20),
            session_lifetime: None,
            session_refusal: SessionRefusal::Coded(StatusCode::BAD_REQUEST),
            single_session: false,
            login_refusal: StatusCode::BAD_REQUEST,
            login_refusal_code: "REQUEST_FAILED.User.NotAuthenticated",
            readable_after: Duration::ZERO,
            numeric_codes: false,
            shape: Shape::default(),
            callbacks: CallbackOptions::default(),
        }
    }
}

/// A simulator that has its address and does not serve yet.
#[derive(Debug)]
pub struct Simulator {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<state::Shared>,
    errands: mpsc::UnboundedReceiver<callbacks::Errand>,
}

impl Simulator {
    pub async fn bind(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let (outbox, errands) = mpsc::unbounded_channel();
        Ok(Self {
            listener,
            address,
            shared: Arc::new(state::Shared::new(options, outbox)),
            errands,
        })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What `thingspace.base_url` has to be: up to and with `/api`.
    pub fn base_url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// Serves until `stop`, then cuts every connection.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let listener = connection::Listener::new(self.listener, stop.clone());
        tokio::spawn(callbacks::run(Arc::clone(&self.shared), self.errands, stop.clone()));
        let router = routes::router(self.shared, stop.clone());
        axum::serve(listener, router.into_make_service_with_connect_info::<connection::Cut>())
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }
}
