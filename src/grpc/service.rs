//! The three RPCs.

use std::{sync::Arc, time::Duration};

use futures_util::stream::Empty;
use tokio::time::{Instant, timeout_at};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Request, Response, Status};

use super::{
    MAX_PAGE_BYTES,
    authenticate::Sender,
    authorize::denied,
    convert::{self, OrderRules, Violations},
    deadline::{Deadline, without_margin},
    fragment, status,
    watch_stream::{WatchContext, WatchStream},
};
use crate::{
    auth::{Method, Policy},
    config::Config,
    identity::{AccountName, Digits, RequestId},
    proto::esim::{
        DownloadProfileRequest, DownloadProfileResponse, GetRequestStatusRequest,
        GetRequestStatusResponse, WatchRequestRequest, WatchRequestResponse,
        esim_service_server::EsimService,
    },
    requests::{Effect, Error, Placed, Requests, StatusOptions, hub::Tracked, watch::Snapshot},
    server::Connection,
    telemetry::{AuditEntry, PendingEntry, rpc::CallSubject},
};

#[derive(Debug, Clone)]
pub(crate) struct Esim {
    requests: Requests,
    policy: Policy,
    rules: OrderRules,
    max_deadline: Duration,
    watches: Arc<WatchContext>,
    /// Cancelled when the drain begins.
    drain: CancellationToken,
    /// Tracks calls in progress, for which the drain waits.
    calls: TaskTracker,
}

impl Esim {
    pub(crate) fn new(
        requests: Requests,
        policy: Policy,
        config: &Config,
        drain: CancellationToken,
        calls: TaskTracker,
    ) -> Self {
        let limits = &config.limits;
        let rules = OrderRules {
            // An order above a limit of open devices can never be placed.
            max_devices: config
                .thingspace
                .max_devices_per_order
                .min(limits.caller_open_devices)
                .min(limits.open_devices),
            strict_checksums: config.thingspace.strict_checksums,
        };
        let watches = Arc::new(WatchContext::new(&config.grpc, drain.clone(), calls.clone()));
        let max_deadline = config.grpc.max_deadline;
        Self { requests, policy, rules, max_deadline, watches, drain, calls }
    }

    /// Admits a call, unless the gateway drains. The drain waits until the returned token is
    /// dropped. The answer must be sent by the returned instant to meet the caller's deadline.
    fn admit<T>(
        &self,
        request: &Request<T>,
    ) -> Result<(TaskTrackerToken, Option<Instant>), Status> {
        if self.drain.is_cancelled() {
            return Err(status::of(&Error::Draining));
        }
        let deadline = request.extensions().get::<Deadline>();
        Ok((self.calls.token(), deadline.map(|deadline| deadline.answer)))
    }

    /// Checks that the caller may call the method for the account. To be called before anything is
    /// looked up.
    fn authorize(
        &self,
        sender: &Sender,
        method: Method,
        account: &AccountName,
    ) -> Result<(), Status> {
        if self.policy.allows(&sender.caller, method, account) {
            return Ok(());
        }
        Err(denied(sender, method, Some(self.shown(account))))
    }

    fn is_configured(&self, account: &AccountName) -> bool {
        self.requests.check_account(account).is_ok()
    }

    /// Returns an account as the audit log shows it. Another text than an account of the
    /// configuration is masked, because it may be the identity of a device.
    fn shown(&self, account: &AccountName) -> String {
        if self.is_configured(account) {
            account.to_string()
        } else {
            Digits::new(account.as_str()).to_string()
        }
    }

    /// Records what a call is about for its log line, unless the account is not one of the
    /// configuration. Then neither account nor request may be shown.
    fn record(&self, subject: &CallSubject, account: &AccountName, request: Option<&RequestId>) {
        if self.is_configured(account) {
            subject.set(account, request);
        }
    }

    /// Returns the caller's deadline, or that of the gateway if it is earlier.
    fn unary_deadline(&self, caller: Option<Instant>) -> Instant {
        let ours = Instant::now() + self.max_deadline;
        caller.map_or(ours, |caller| caller.min(ours))
    }

    /// Returns the status with the devices of a page, or without devices.
    async fn page(
        &self,
        page_size: Option<usize>,
        offset: usize,
        tracked: &Tracked,
    ) -> Result<GetRequestStatusResponse, Error> {
        let snapshot = Snapshot::page(tracked, offset, page_size.unwrap_or(0));
        let mut status = convert::status_header(&snapshot);
        status.devices = fragment::fill(&snapshot.devices, 0, MAX_PAGE_BYTES).0;
        let next = offset + status.devices.len();
        let next_page_token = if page_size.is_some() && next < snapshot.counts.total {
            self.requests.page_token(&snapshot.id, next).await?
        } else {
            String::new()
        };
        Ok(GetRequestStatusResponse { status: Some(status), next_page_token })
    }
}

#[tonic::async_trait]
impl EsimService for Esim {
    async fn download_profile(
        &self,
        request: Request<DownloadProfileRequest>,
    ) -> Result<Response<DownloadProfileResponse>, Status> {
        let (_call, deadline) = self.admit(&request)?;
        let deadline = self.unary_deadline(deadline);
        let (subject, sender) = (subject(&request), sender(&request)?);
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let placement = convert::placement(request, sender.caller.name(), self.rules)
            .map_err(status::invalid)?;
        let (account, devices) = (placement.order.account.clone(), placement.order.devices.len());
        self.record(&subject, &account, None);
        self.authorize(&sender, Method::DownloadProfile, &account)?;
        if validate_only {
            self.requests.check_account(&account).map_err(to_status)?;
            return Ok(Response::new(DownloadProfileResponse::default()));
        }
        let entry = AuditEntry {
            account: Some(self.shown(&account)),
            devices: Some(devices),
            ..sender.audit_entry(Method::DownloadProfile)
        };
        let entry = entry.begin("a caller ordered profiles");
        let placed = self.requests.download(placement, deadline).await;
        end(entry, &placed);
        let Placed { request_id, replayed } = placed.map_err(to_status)?;
        Ok(Response::new(DownloadProfileResponse { request_id: request_id.to_string(), replayed }))
    }

    async fn get_request_status(
        &self,
        request: Request<GetRequestStatusRequest>,
    ) -> Result<Response<GetRequestStatusResponse>, Status> {
        let (_call, deadline) = self.admit(&request)?;
        let deadline = self.unary_deadline(deadline);
        let (subject, sender) = (subject(&request), sender(&request)?);
        let closing = closing(&request)?;
        let call = convert::status_call(request.into_inner()).map_err(status::invalid)?;
        self.record(&subject, &call.account, Some(&call.request));
        self.authorize(&sender, Method::GetRequestStatus, &call.account)?;
        // A long poll ends early enough for its answer to arrive in time.
        let longest = without_margin(deadline.saturating_duration_since(Instant::now()));
        let wait_until = (!call.wait.is_zero()).then(|| {
            let end = Instant::now() + call.wait.min(longest);
            sender.caller.expires().map_or(end, |expires| end.min(expires))
        });
        let query = StatusOptions {
            max_age: call.max_age,
            wait_until,
            after_revision: call.after_revision,
        };
        let answer = async {
            let request = self.requests.spelling(&call.request).await?;
            let status = |query| self.requests.status(&call.account, &request, query);
            // Refuses a wrong token before ThingSpace is queried.
            let offset = self.requests.page_offset(&request, &call.page_token).await?;
            let attached = tokio::select! {
                attached = status(query) => attached?,
                // Neither the drain nor the end of the connection waits for a long poll. It is
                // answered early.
                () = closing.cancelled(), if wait_until.is_some() => {
                    status(StatusOptions { wait_until: Some(Instant::now()), ..query }).await?
                }
            };
            self.page(call.page_size, offset, &attached.0).await
        };
        let answer = timeout_at(deadline, answer).await;
        answer.unwrap_or(Err(DEADLINE)).map(Response::new).map_err(to_status)
    }

    /// Without messages: the response gets its body from [`WatchStream`].
    type WatchRequestStream = Empty<Result<WatchRequestResponse, Status>>;

    async fn watch_request(
        &self,
        request: Request<WatchRequestRequest>,
    ) -> Result<Response<Self::WatchRequestStream>, Status> {
        let (call, deadline) = self.admit(&request)?;
        let (subject, sender) = (subject(&request), sender(&request)?);
        let closing = closing(&request)?;
        let request = request.into_inner();
        let mut wrong = Violations::default();
        let Some((account, id)) =
            convert::target(&request.account_name, &request.request_id, &mut wrong)
        else {
            return Err(status::invalid(wrong));
        };
        self.record(&subject, &account, Some(&id));
        self.authorize(&sender, Method::WatchRequest, &account)?;
        let caller = sender.caller.shared_name();
        let begin = self.requests.watch(&account, &id, &request.resume_token, caller);
        let watch = timeout_at(self.unary_deadline(deadline), begin).await;
        let watch = watch.unwrap_or(Err(DEADLINE)).map_err(to_status)?;
        let expires = sender.caller.expires();
        let stream = WatchStream::new(watch, &self.watches, deadline, expires, closing, call);
        Ok(stream.into_response())
    }
}

/// The error of a call without effects whose deadline has passed.
pub(super) const DEADLINE: Error = Error::Deadline(Effect::None);

/// Writes the audit line of an order.
fn end(mut entry: PendingEntry, placed: &Result<Placed, Error>) {
    match placed {
        Ok(Placed { request_id, replayed }) => {
            entry.entry.request_id = Some(request_id.to_string());
            entry.end(if *replayed { "replayed" } else { "placed" }, None);
        }
        Err(error @ (Error::OrderOutcomeUnknown { .. } | Error::Deadline(Effect::Unknown))) => {
            entry.end("unknown", Some(error.to_string()));
        }
        Err(error) => entry.end("failed", Some(error.to_string())),
    }
}

/// Returns the sender of a call. Every call of the API has one, so an error is a defect.
fn sender<T>(request: &Request<T>) -> Result<Sender, Status> {
    let sender = request.extensions().get().cloned();
    sender.ok_or_else(|| to_status(Error::Internal("a call was not authenticated".to_owned())))
}

/// Returns the token that is cancelled when the connection of a call closes.
fn closing<T>(request: &Request<T>) -> Result<CancellationToken, Status> {
    let closing = request.extensions().get().map(Connection::closing).cloned();
    closing.ok_or_else(|| to_status(Error::Internal("a call has no connection".to_owned())))
}

/// Returns the value that records the account and the request of a call for its span.
fn subject<T>(request: &Request<T>) -> CallSubject {
    request.extensions().get().cloned().unwrap_or_default()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn to_status(error: Error) -> Status {
    status::of(&error)
}
