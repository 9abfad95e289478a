//! A simulated ThingSpace over real HTTP, for `dev`, `simulate` and the tests.
//!
//! It has OAuth 2.0 and UWS sessions, takes orders for Global profiles, answers status queries and
//! sends callbacks. It follows Verizon's pages, and the deviations from them that users reported.
//! Where the pages say nothing, [`Options`] decide. It shares no JSON type with the gateway's
//! client, so a wrong field name makes a test fail.
//!
//! It never corrects its input. The [`Ledger`] counts every call and order until the process ends.
//! When it stops, every connection breaks, and no work is finished.
//!
//! In [`Mode::Auto`] the last digit of a device's ICCID (of its EID, if it has no ICCID) decides
//! the result:
//!
//! | digit | result |
//! |---|---|
//! | 0 to 4 | Success, `after` the order |
//! | 5, 6 | Success, 2 × `after` |
//! | 7 | Success, 4 × `after` |
//! | 8 | Failed, `after` the order |
//! | 9 | Success, 10 × `after` |

mod callbacks;
mod connection;
pub mod control;
mod delivery;
mod error;
mod faults;
mod handle;
mod ledger;
mod order;
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
    CallbackOptions, CallbackRetries, CallbackShape, Case, Passwords, SERVICE, Sequence,
    ServiceField, SimulatedRegistration,
};
pub use faults::{Endpoint, Fault, Gate, What, When};
pub use handle::Handle;
pub use ledger::{Attempts, Ledger, PlacedOrder};
pub use requests::DeviceResult;
pub use shape::{Identifiers, List, Overall, Shape, Words};

/// How the simulator behaves. The default credentials are valid nowhere else.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the types of the other fields are documented")]
pub struct Options {
    /// The address of the API. Port 0 chooses a free port.
    pub listen: SocketAddr,
    pub mode: Mode,
    /// The accounts that the user may use.
    pub accounts: Vec<AccountName>,
    /// Accounts that exist, but that the user may not use.
    pub foreign_accounts: Vec<AccountName>,
    /// The plans that exist. If empty, every plan exists.
    pub service_plans: Vec<String>,
    /// The key of the application.
    pub key: String,
    /// The secret of the application.
    pub secret: SecretString,
    /// The name of the user.
    pub username: String,
    /// The initial password of the user; see [`Handle::set_password`].
    pub password: SecretString,
    /// The lifetime of a bearer token. Every token request in this time gets the same token.
    pub bearer_lifetime: Duration,
    /// The time without a call after which a session ends.
    pub session_idle: Duration,
    /// The time after which a session ends although it is used; `None`: never.
    pub session_lifetime: Option<Duration>,
    pub session_refusal: SessionRefusal,
    /// Whether a login ends the user's earlier sessions.
    pub single_session: bool,
    /// The status of a rejected login. It is not documented.
    pub login_refusal: StatusCode,
    /// The code of a rejected login, after `UnifiedWebService.`.
    pub login_refusal_code: &'static str,
    /// How long a new request id is unknown to the status endpoint.
    pub readable_after: Duration,
    pub shape: Shape,
    pub callbacks: CallbackOptions,
}

/// When devices finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// After a multiple of `after`, as the module's table says.
    #[expect(missing_docs, reason = "the variant documents it")]
    Auto { after: Duration },
    /// When a test calls [`Handle::finish`].
    Manual,
}

/// The answer to a session token that is missing, unknown or expired. Users saw each of these.
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
            session_idle: Duration::from_mins(20),
            session_lifetime: None,
            session_refusal: SessionRefusal::Coded(StatusCode::BAD_REQUEST),
            single_session: false,
            login_refusal: StatusCode::BAD_REQUEST,
            login_refusal_code: "REQUEST_FAILED.User.NotAuthenticated",
            readable_after: Duration::ZERO,
            shape: Shape::default(),
            callbacks: CallbackOptions::default(),
        }
    }
}

/// A simulator that has bound its address and does not serve yet.
#[derive(Debug)]
pub struct Simulator {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<state::SimulatorShared>,
    deliveries: mpsc::UnboundedReceiver<callbacks::Delivery>,
}

impl Simulator {
    /// Binds `options.listen`.
    pub async fn bind(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let (outbox, deliveries) = mpsc::unbounded_channel();
        let shared = Arc::new(state::SimulatorShared::new(options, outbox));
        Ok(Self { listener, address, shared, deliveries })
    }

    /// Returns the bound address, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the value for `thingspace.base_url`, including `/api`.
    pub fn base_url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    /// Returns a handle that stays valid while the simulator runs and after it.
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// Serves until `stop`, then breaks every connection.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let listener = connection::Listener { tcp: self.listener, stop: stop.clone() };
        tokio::spawn(delivery::run(Arc::clone(&self.shared), self.deliveries, stop.clone()));
        let router = routes::router(self.shared, stop.clone());
        axum::serve(
            listener,
            router.into_make_service_with_connect_info::<connection::ConnectionCut>(),
        )
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
    }
}
