//! One HTTP request to ThingSpace, and what its reply means.
//!
//! - [`transport`] sends one request to one [`Endpoint`](transport::Endpoint), and [`mod@reply`]
//!   reads the reply within bounds of time and size. [`breaker`] stops requests to a host that does
//!   not answer.
//! - [`wire`] writes and reads the bodies of the API. [`agreement`] compares the entries of a
//!   status answer.
//! - [`body`], [`object`] and [`json`] read JSON of any form. [`words`] recognises words in any
//!   case and punctuation.
//! - [`mod@probe`] asks hosts whether they answer, for `doctor`.
//! - [`code`] reads error codes from every envelope. Its table says what each code means.
//! - [`verdict`] decides what a whole reply means.
//!
//! Guarantees: every reply is bounded and has exactly one verdict. Never retries a request, and
//! holds no token.

mod agreement;
pub(super) mod body;
pub(super) mod breaker;
pub(super) mod code;
mod json;
mod object;
mod probe;
pub(super) mod reply;
pub(super) mod transport;
pub(super) mod verdict;
pub(super) mod wire;
mod words;

pub(crate) use self::{
    body::DeviceParts,
    breaker::HostHealth,
    code::shown as shown_code,
    object::Object,
    probe::{HostAnswer, probe},
};
