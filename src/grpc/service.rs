//! The three RPCs.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, stream};
use tokio::time::Instant;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Request, Response, Status};

use super::{
    MAX_PAGE_BYTES,
    convert::{self, OrderRules, Violations},
    deadline::{self, Deadline},
    fragment::{self, Fragment, Partly},
    status,
};
use crate::{
    config,
    identity::RequestId,
    proto::esim::{
        DownloadProfileRequest, DownloadProfileResponse, GetRequestStatusRequest,
        GetRequestStatusResponse, WatchRequestRequest, WatchRequestResponse,
        esim_service_server::EsimService,
    },
    requests::{
        Effect, Error, Placed, Requests, StatusQuery,
        hub::Tracked,
        watch::{Event, Snapshot, Watch},
    },
    store::StoreError,
    telemetry::rpc::About,
};

/// What the service takes from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    rules: OrderRules,
    max_deadline: Duration,
}

impl Settings {
    pub fn new(config: &config::Config) -> Self {
        let rules = OrderRules {
            max_devices: config.thingspace.max_devices_per_order,
            strict_checksums: config.thingspace.strict_checksums,
        };
        Self { rules, max_deadline: config.grpc.max_deadline }
    }
}

/// The service.
#[derive(Debug, Clone)]
pub struct Esim {
    requests: Requests,
    settings: Settings,
    /// Cancelled when the drain begins.
    drain: CancellationToken,
    /// Calls under way.
    calls: TaskTracker,
}

impl Esim {
    pub fn new(
        requests: Requests,
        settings: Settings,
        drain: CancellationToken,
        calls: TaskTracker,
    ) -> Self {
        Self { requests, settings, drain, calls }
    }

    /// Admits a call: what keeps the process alive for it, and when its answer has to leave.
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

    fn unary_deadline(&self, caller: Option<Instant>) -> Instant {
        let ours = Instant::now() + self.settings.max_deadline;
        caller.map_or(ours, |caller| caller.min(ours))
    }

    /// Where the page begins that is asked for.
    async fn page_start(&self, request: &RequestId, token: &str) -> Result<usize, Error> {
        if token.is_empty() {
            return Ok(0);
        }
        self.requests.token_key().await?.0.open_page(request, token)
    }

    async fn page(
        &self,
        page_size: Option<usize>,
        from: usize,
        tracked: &Tracked,
    ) -> Result<GetRequestStatusResponse, Error> {
        let snapshot = Snapshot::page(tracked, from, page_size.unwrap_or(0));
        let mut status = convert::status_header(&snapshot);
        status.devices = fragment::fill(&snapshot.devices, 0, MAX_PAGE_BYTES).0;
        let next = from + status.devices.len();
        let next_page_token = if page_size.is_some() && next < snapshot.counts.total {
            self.requests.token_key().await?.0.page(&snapshot.id, next)
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
        let about = about(&request);
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let placement = convert::placement(request, self.settings.rules).map_err(invalid)?;
        about.say(&placement.order.account, None);
        if validate_only {
            self.requests
                .check_account(&placement.order.account)
                .map_err(|error| status::of(&error))?;
            return Ok(Response::new(DownloadProfileResponse::default()));
        }
        let Placed { request_id, replayed } = self
            .requests
            .download(placement, deadline)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(DownloadProfileResponse { request_id: request_id.to_string(), replayed }))
    }

    async fn get_request_status(
        &self,
        request: Request<GetRequestStatusRequest>,
    ) -> Result<Response<GetRequestStatusResponse>, Status> {
        let (_call, deadline) = self.admit(&request)?;
        let deadline = self.unary_deadline(deadline);
        let about = about(&request);
        let call = convert::status_call(request.into_inner()).map_err(invalid)?;
        about.say(&call.account, Some(&call.request));
        // A long poll ends in time to be answered.
        let longest = deadline::before(deadline.saturating_duration_since(Instant::now()));
        let wait_until = (!call.wait.is_zero()).then(|| Instant::now() + call.wait.min(longest));
        let query =
            StatusQuery { max_age: call.max_age, wait_until, after_revision: call.after_revision };
        let answer = async {
            let request = self.requests.spelling(&call.request).await?;
            let ask = |query| self.requests.status(&call.account, &request, query);
            // First: a wrong token is found before anything is sent.
            let from = self.page_start(&request, &call.page_token).await?;
            let attached = tokio::select! {
                attached = ask(query) => attached?,
                // A long poll may be answered early, and a drain does not wait for it.
                () = self.drain.cancelled(), if wait_until.is_some() => {
                    ask(StatusQuery { wait_until: Some(Instant::now()), ..query }).await?
                }
            };
            self.page(call.page_size, from, &attached.tracked).await
        };
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer.map(Response::new).map_err(|error| status::of(&error)),
            Err(_) => Err(status::of(&Error::Deadline(Effect::None))),
        }
    }

    type WatchRequestStream =
        Pin<Box<dyn Stream<Item = Result<WatchRequestResponse, Status>> + Send>>;

    async fn watch_request(
        &self,
        request: Request<WatchRequestRequest>,
    ) -> Result<Response<Self::WatchRequestStream>, Status> {
        let (call, deadline) = self.admit(&request)?;
        let about = about(&request);
        let request = request.into_inner();
        let mut wrong = Violations::default();
        let Some((account, id)) =
            convert::target(&request.account_name, &request.request_id, &mut wrong)
        else {
            return Err(invalid(wrong));
        };
        about.say(&account, Some(&id));
        let begin = self.requests.watch(&account, &id, &request.resume_token);
        let watch = match tokio::time::timeout_at(self.unary_deadline(deadline), begin).await {
            Ok(watch) => watch.map_err(|error| status::of(&error))?,
            Err(_) => return Err(status::of(&Error::Deadline(Effect::None))),
        };
        let streaming = Streaming {
            watch,
            partly: Partly::Nothing,
            token: request.resume_token,
            deadline,
            drain: self.drain.clone(),
            ended: false,
            _call: call,
        };
        Ok(Response::new(Box::pin(stream::unfold(streaming, Streaming::step))))
    }
}

/// A watch on its way to its reader.
struct Streaming {
    watch: Watch,
    partly: Partly,
    /// The last token sent.
    token: String,
    deadline: Option<Instant>,
    drain: CancellationToken,
    ended: bool,
    _call: TaskTrackerToken,
}

impl Streaming {
    async fn step(mut self) -> Option<(Result<WatchRequestResponse, Status>, Self)> {
        if self.ended {
            return None;
        }
        match self.next().await {
            Ok(Some(message)) => Some((Ok(message), self)),
            Ok(None) => None,
            Err(error) => {
                self.ended = true;
                Some((Err(status::of_watch(&error, &self.token)), self))
            }
        }
    }

    async fn next(&mut self) -> Result<Option<WatchRequestResponse>, Error> {
        // By the clock: a timer that is set for a time gone by rings later, and then the stream is
        // ended without its token.
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::Deadline(Effect::None));
        }
        let deadline = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = self.watch.next() => event?,
            // Only a whole revision has a token to go on from.
            () = self.drain.cancelled(), if self.partly == Partly::Nothing => return Err(Error::Draining),
            () = deadline => return Err(Error::Deadline(Effect::None)),
        };
        let Some(event) = event else { return Ok(None) };
        let Some(Fragment { event: message, completes, partly }) =
            fragment::next(&event, self.partly)
        else {
            // The first half of a revision was sent, and the second is lost. The caller resumes
            // before it.
            let lost = "the history of the request is no longer whole".to_owned();
            return Err(Error::Store(StoreError::Unavailable(lost)));
        };
        self.partly = partly;
        match (completes, event) {
            (Some((position, revision)), _) => {
                self.watch.complete(position, revision);
                self.token = self.watch.token(position, revision);
            }
            (None, Event::Snapshot(snapshot)) => self.watch.pause(snapshot),
            // What does not fit comes from the watch again.
            (None, _) => {}
        }
        let more = completes.is_none();
        let resume_token = if more { String::new() } else { self.token.clone() };
        Ok(Some(WatchRequestResponse { event: Some(message), resume_token, more }))
    }
}

/// Where to say what a call is about.
fn about<T>(request: &Request<T>) -> About {
    request.extensions().get().cloned().unwrap_or_default()
}

fn invalid(violations: Violations) -> Status {
    status::invalid(violations.into_inner())
}
