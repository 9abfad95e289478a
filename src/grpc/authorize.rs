//! The layer that refuses a method of the API that the policy does not allow a caller for any
//! account. The service checks the account, before anything is looked up.
//!
//! It is behind the limits. So a caller that is known writes at most as many lines into the audit
//! log as its limit of calls allows.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::Status;
use tower::Service;

use super::{
    API,
    authenticate::{DENIED, Sender, count},
    status,
};
use crate::auth::{Authenticator, Method};

/// The reason of a call that the policy does not allow, in metrics.
pub(super) const NOT_ALLOWED: &str = "not_allowed";

/// The layer around the services.
#[derive(Debug, Clone)]
pub(crate) struct Authorize<S> {
    inner: S,
    authenticator: Authenticator,
}

impl<S> Authorize<S> {
    pub(crate) fn new(inner: S, authenticator: Authenticator) -> Self {
        Self { inner, authenticator }
    }
}

impl<S, In, Out> Service<Request<In>> for Authorize<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Out: Default + Send + 'static,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let method = request.uri().path().strip_prefix(API).and_then(Method::parse);
        // A call without a sender is one of the health service.
        let sender = request.extensions().get::<Sender>();
        if let (Some(method), Some(sender)) = (method, sender)
            && !self.authenticator.policy().allows_method(&sender.caller, method)
        {
            let denied = denied(sender, method, None).into_http();
            return Box::pin(async { Ok(denied) });
        }
        Box::pin(self.inner.call(request))
    }
}

/// Records and answers a call that the policy does not allow. `account` is as logs may show it.
pub(super) fn denied(sender: &Sender, method: Method, account: Option<String>) -> Status {
    count(NOT_ALLOWED);
    let mut entry = sender.audit_entry(method);
    entry.account = account;
    entry.write("a call was denied: no entry of auth.allow allows it", DENIED, None);
    status::not_allowed()
}
