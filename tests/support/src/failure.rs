//! How calls of ThingSpace fail.

use std::time::Duration;

use axum::http::StatusCode;
use thingspace_gateway::simulator::{Gate, What};

use Failure::{
    Cut, Empty, Forbidden, Hang, LargeBody, LargeHead, Page, Redirect, RequestTimeout, Reset,
    ServerError, Silence, Throttled, Trickle, Truncated, Unauthorized, Unavailable503,
};

/// How calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No answer, ever.
    Hang,
    /// 401 for a token or key that is valid.
    Unauthorized,
    /// 403 in XML, which says 404.
    Forbidden,
    /// 408 without a body.
    RequestTimeout,
    /// 429 with `Retry-After: 1`.
    Throttled,
    /// 500 with an error code.
    ServerError,
    /// 503 with a page of HTML.
    Unavailable503,
    /// 200 with a page of HTML.
    Page,
    /// Half of a JSON document.
    Truncated,
    /// The connection is reset.
    Reset,
    /// One byte at a time, for longer than any time limit.
    Trickle,
    /// The connection ends without an answer.
    Silence,
    /// The connection ends in the middle of the body.
    Cut,
    /// 200 without a body.
    Empty,
    /// 307 to another path.
    Redirect,
    /// 200 with a body of more than 16 MiB.
    LargeBody,
    /// More headers than a client accepts.
    LargeHead,
}

impl Failure {
    pub const ALL: [Self; 17] = [
        Hang,
        Unauthorized,
        Forbidden,
        RequestTimeout,
        Throttled,
        ServerError,
        Unavailable503,
        Page,
        Truncated,
        Reset,
        Trickle,
        Silence,
        Cut,
        Empty,
        Redirect,
        LargeBody,
        LargeHead,
    ];

    pub fn what(self, gate: &Gate) -> What {
        match self {
            Hang => What::Hold(gate.clone()),
            Unauthorized => What::invalid_credentials(),
            Forbidden => What::wrong_authentication(),
            RequestTimeout => What::bare(StatusCode::REQUEST_TIMEOUT),
            Throttled => What::Throttle { retry_after: Some(1) },
            ServerError => What::failed(StatusCode::INTERNAL_SERVER_ERROR),
            Unavailable503 => What::Unavailable { retry_after: None },
            Page => What::page(StatusCode::OK),
            Truncated => What::HalfBody,
            Reset => What::Reset,
            Trickle => What::Trickle { pause: Duration::from_millis(200) },
            Silence => What::Drop,
            Cut => What::CutBody,
            Empty => What::bare(StatusCode::OK),
            Redirect => What::Redirect { location: "/api/m2m/v1/elsewhere".to_owned() },
            LargeBody => What::Status {
                status: StatusCode::OK,
                content_type: "application/json",
                body: " ".repeat(17 << 20) + "{}",
            },
            LargeHead => What::Headers { count: 1_000 },
        }
    }
}
