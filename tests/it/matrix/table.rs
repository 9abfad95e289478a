//! The expected results for callers, ThingSpace and the store, line by line.
//!
//! A line holds for a failure before the effect and after it: the gateway cannot tell them apart,
//! so it must behave in the same way. ThingSpace keeps failing until the caller has its answer.

use thingspace_gateway::simulator::Endpoint;
use tonic::Code::{self, FailedPrecondition, ResourceExhausted, Unavailable};

use Key::{Free, Unknown};
use test_support::failure::Failure::{self, *};

/// The state of the order's key, which decides what the same call does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Nothing was placed: the next call places the order.
    Free,
    /// The order may exist: the next call gets the same error, and sends nothing.
    Unknown,
}

/// The calls to ThingSpace, failed or not, between the caller's call and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    pub token: u64,
    pub login: u64,
    pub download: u64,
    pub status: u64,
}

const fn calls(token: u64, login: u64, download: u64, status: u64) -> Calls {
    Calls { token, login, download, status }
}

pub type Line<T> = (Failure, (Code, &'static str), Calls, T);

const DOWN: (Code, &str) = (Unavailable, "UPSTREAM_UNAVAILABLE");
const THROTTLED: (Code, &str) = (ResourceExhausted, "UPSTREAM_THROTTLED");
const REJECTED: (Code, &str) = (FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED");
const REFUSED: (Code, &str) = (FailedPrecondition, "UPSTREAM_REFUSED");
const UNKNOWN: (Code, &str) = (FailedPrecondition, "ORDER_OUTCOME_UNKNOWN");

/// An order that finds its bearer expired (its first POST), while token requests fail. A token
/// request that may succeed a moment later is repeated once for the same caller, and the order is
/// not sent.
pub const TOKEN: [Line<Key>; 17] = [
    (Hang, DOWN, calls(2, 0, 1, 0), Free),
    (Unauthorized, REJECTED, calls(2, 0, 1, 0), Free),
    (Forbidden, REJECTED, calls(2, 0, 1, 0), Free),
    (RequestTimeout, DOWN, calls(2, 0, 1, 0), Free),
    (Throttled, THROTTLED, calls(1, 0, 1, 0), Free),
    (ServerError, DOWN, calls(2, 0, 1, 0), Free),
    (Unavailable503, DOWN, calls(2, 0, 1, 0), Free),
    (Page, DOWN, calls(2, 0, 1, 0), Free),
    (Truncated, DOWN, calls(2, 0, 1, 0), Free),
    (Reset, DOWN, calls(2, 0, 1, 0), Free),
    (Trickle, DOWN, calls(2, 0, 1, 0), Free),
    (Silence, DOWN, calls(2, 0, 1, 0), Free),
    (Cut, DOWN, calls(2, 0, 1, 0), Free),
    (Empty, DOWN, calls(2, 0, 1, 0), Free),
    (Redirect, DOWN, calls(2, 0, 1, 0), Free),
    (LargeBody, DOWN, calls(2, 0, 1, 0), Free),
    (LargeHead, DOWN, calls(2, 0, 1, 0), Free),
];

/// An order that finds its session expired (its first POST), while logins fail. A login without a
/// usable answer is repeated once for the same caller. Each of the two is repeated with a new
/// bearer if its bearer is refused, because ThingSpace has not looked at the password.
pub const LOGIN: [Line<Key>; 17] = [
    (Hang, DOWN, calls(0, 2, 1, 0), Free),
    (Unauthorized, DOWN, calls(2, 4, 1, 0), Free),
    (Forbidden, REJECTED, calls(0, 1, 1, 0), Free),
    (RequestTimeout, DOWN, calls(0, 2, 1, 0), Free),
    (Throttled, THROTTLED, calls(0, 1, 1, 0), Free),
    (ServerError, DOWN, calls(0, 2, 1, 0), Free),
    (Unavailable503, DOWN, calls(0, 2, 1, 0), Free),
    (Page, DOWN, calls(0, 2, 1, 0), Free),
    (Truncated, DOWN, calls(0, 2, 1, 0), Free),
    (Reset, DOWN, calls(0, 2, 1, 0), Free),
    (Trickle, DOWN, calls(0, 2, 1, 0), Free),
    (Silence, DOWN, calls(0, 2, 1, 0), Free),
    (Cut, DOWN, calls(0, 2, 1, 0), Free),
    (Empty, DOWN, calls(0, 2, 1, 0), Free),
    (Redirect, DOWN, calls(0, 2, 1, 0), Free),
    (LargeBody, DOWN, calls(0, 2, 1, 0), Free),
    (LargeHead, DOWN, calls(0, 2, 1, 0), Free),
];

/// A failing order. It is sent once, unless ThingSpace says that it refused it before execution.
pub const DOWNLOAD: [Line<Key>; 17] = [
    (Hang, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Unauthorized, DOWN, calls(2, 0, 1, 0), Free),
    (Forbidden, REFUSED, calls(0, 0, 1, 0), Free),
    (RequestTimeout, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Throttled, THROTTLED, calls(0, 0, 1, 0), Free),
    (ServerError, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Unavailable503, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Page, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Truncated, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Reset, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Trickle, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Silence, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Cut, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Empty, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (Redirect, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (LargeBody, UNKNOWN, calls(0, 0, 1, 0), Unknown),
    (LargeHead, UNKNOWN, calls(0, 0, 1, 0), Unknown),
];

/// A status query about a pending request. It is repeated twice where that may help, and the stored
/// state stays.
pub const STATUS: [Line<()>; 17] = [
    (Hang, DOWN, calls(0, 0, 0, 3), ()),
    (Unauthorized, DOWN, calls(3, 0, 0, 2), ()),
    (Forbidden, REFUSED, calls(0, 0, 0, 1), ()),
    (RequestTimeout, DOWN, calls(0, 0, 0, 3), ()),
    (Throttled, THROTTLED, calls(0, 0, 0, 3), ()),
    (ServerError, DOWN, calls(0, 0, 0, 3), ()),
    (Unavailable503, DOWN, calls(0, 0, 0, 3), ()),
    (Page, DOWN, calls(0, 0, 0, 3), ()),
    (Truncated, DOWN, calls(0, 0, 0, 3), ()),
    (Reset, DOWN, calls(0, 0, 0, 3), ()),
    (Trickle, DOWN, calls(0, 0, 0, 3), ()),
    (Silence, DOWN, calls(0, 0, 0, 3), ()),
    (Cut, DOWN, calls(0, 0, 0, 3), ()),
    (Empty, DOWN, calls(0, 0, 0, 3), ()),
    (Redirect, DOWN, calls(0, 0, 0, 1), ()),
    (LargeBody, DOWN, calls(0, 0, 0, 1), ()),
    (LargeHead, DOWN, calls(0, 0, 0, 3), ()),
];

/// After the effect, these answers say that an order was not executed although it was. Only in
/// these cases may the gateway order twice.
pub fn is_a_lie(endpoint: Endpoint, failure: Failure) -> bool {
    endpoint == Endpoint::Download && matches!(failure, Unauthorized | Forbidden | Throttled)
}
