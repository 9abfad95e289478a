//! One HTTP request to ThingSpace, and what its answer means.
//!
//! - [`transport`] sends one request to one [`Endpoint`](transport::Endpoint) and reads the reply
//!   within bounds of time and size; [`breaker`] stops requests to a host that does not answer.
//! - [`wire`] holds the bodies of the API, and [`agreement`] compares the entries of a status answer;
//!   [`body`], [`object`] and [`json`] read JSON of any shape, and what contradicts a success.
//! - [`code`] reads error codes out of every envelope, and its table says what each code means.
//! - [`verdict`] combines the whole reply into one verdict; [`words`] compares words of any case and
//!   punctuation.
//!
//! Guarantees: every reply is bounded, and every reply has exactly one verdict. This module never
//! retries a request and holds no token.

mod agreement;
pub(super) mod body;
pub(super) mod breaker;
pub(super) mod code;
mod json;
mod object;
pub(super) mod transport;
pub(super) mod verdict;
pub(super) mod wire;
mod words;

pub(crate) use self::{body::Parts, code::shown as shown_code, object::Object};

pub use self::breaker::HostHealth;
