//! The layer that authenticates every call before a service sees it.
//!
//! Health is open, because load balancers have no credentials. Every other service needs a caller.
//! Calls that are denied are recorded in the audit log, or only their number if there are too many.

use std::{
    mem,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower::Service;

use super::{API, class::CallClass, status};
use crate::{
    auth::{AuthError, Authenticator, Caller, Method},
    log_throttle::LogThrottle,
    server::Connection,
    telemetry::{AuditEntry, attribute, metrics, names, rpc::CallSubject},
};

/// The most lines in the audit log about callers without credentials, in a minute, and about those
/// with wrong ones. Everybody who reaches the port can cause them. Further ones are counted.
const MAX_DENIALS: u32 = 100;

/// The sender of a call; an extension of its request.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub(super) caller: Caller,
    /// `None` if the address is not known.
    pub(super) address: Option<SocketAddr>,
}

/// The layer around the services.
#[derive(Debug, Clone)]
pub(crate) struct Authenticate<S> {
    inner: S,
    authenticator: Authenticator,
    denials: Arc<Denials>,
}

/// The denied calls whose callers are not authenticated.
#[derive(Debug)]
struct Denials {
    without_credentials: LogThrottle,
    with_wrong_credentials: LogThrottle,
}

impl<S> Authenticate<S> {
    pub(crate) fn new(inner: S, authenticator: Authenticator) -> Self {
        let denials = Denials {
            without_credentials: LogThrottle::with_lines(MAX_DENIALS),
            with_wrong_credentials: LogThrottle::with_lines(MAX_DENIALS),
        };
        Self { inner, authenticator, denials: Arc::new(denials) }
    }
}

impl<S, In, Out> Service<Request<In>> for Authenticate<S>
where
    S: Service<Request<In>, Response = Response<Out>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    In: Send + 'static,
    Out: Default,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        // The service that is ready makes the call.
        let next = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, next);
        if CallClass::of(request.uri().path()) == CallClass::Health {
            return Box::pin(inner.call(request));
        }
        let (authenticator, denials) = (self.authenticator.clone(), Arc::clone(&self.denials));
        Box::pin(async move {
            let connection = request.extensions().get::<Connection>().cloned();
            let address = connection.as_ref().map(Connection::address);
            let certificate = connection.as_ref().and_then(Connection::certificate);
            let method = request.uri().path().strip_prefix(API).unwrap_or_default();
            let caller = match authenticator.caller(request.headers(), certificate).await {
                Ok(caller) => caller,
                Err(error) => {
                    denials.audit(error, method, address);
                    return Ok(status::unauthenticated(error).into_http());
                }
            };
            if let Some(subject) = request.extensions().get::<CallSubject>() {
                subject.set_caller(caller.known_name());
            }
            let sender = Sender { caller, address };
            request.extensions_mut().insert(sender);
            inner.call(request).await
        })
    }
}

impl Denials {
    fn audit(&self, error: AuthError, method: &str, address: Option<SocketAddr>) {
        count(error.name());
        let throttle = match error {
            AuthError::Missing => &self.without_credentials,
            _ => &self.with_wrong_credentials,
        };
        let Some(times) = throttle.count() else { return };
        write_further(times - 1);
        let entry = AuditEntry {
            address: address.map(|address| address.to_string()),
            method: Method::parse(method).map(Method::name),
            ..AuditEntry::default()
        };
        entry.write("a call was denied: its caller is not authenticated", DENIED, Some(&error));
    }
}

/// Reports the denied calls after the last line.
impl Drop for Denials {
    fn drop(&mut self) {
        write_further(self.without_credentials.take() + self.with_wrong_credentials.take());
    }
}

/// Records the number of denied calls that have no line of their own. They may have other addresses
/// and reasons than the calls that have one.
fn write_further(times: u64) {
    if times > 0 {
        let others = AuditEntry { times: Some(times), ..AuditEntry::default() };
        let what = "further calls were denied: their callers are not authenticated";
        others.write(what, DENIED, None);
    }
}

/// Counts a denied call.
pub(super) fn count(reason: &'static str) {
    metrics().calls_denied.add(&[attribute(names::REASON, reason)]);
}

/// The outcome of a call that is not made.
pub(super) const DENIED: &str = "denied";

impl Sender {
    /// Returns an audit entry about a call of the sender.
    pub(super) fn audit_entry(&self, method: Method) -> AuditEntry {
        AuditEntry {
            caller: Some(self.caller.name().to_owned()),
            token: self.caller.token(),
            address: self.address.map(|address| address.to_string()),
            method: Some(method.name()),
            ..AuditEntry::default()
        }
    }
}
