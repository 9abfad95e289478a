//! One HTTP request to ThingSpace, and what its answer means.
//!
//! - [`transport`] sends one request to one [`Endpoint`](transport::Endpoint) and reads the reply
//!   within bounds of time and size; [`breaker`] stops requests to a host that does not answer.
//! - [`wire`] holds the bodies of the API; [`object`] and [`json`] read JSON of any shape.
//! - [`code`] reads error codes out of every envelope, and its table says what each code means.
//! - [`verdict`] combines the whole reply into one verdict; [`denial`] finds what contradicts a
//!   success; [`words`] compares words of any case and punctuation.
//!
//! Guarantees: every reply is bounded, and every reply has exactly one verdict. This module never
//! retries a request and holds no token.

pub(super) mod breaker;
pub(super) mod code;
mod denial;
mod json;
mod object;
pub(super) mod transport;
pub(super) mod verdict;
pub(super) mod wire;
mod words;

pub(crate) use self::{code::shown as shown_code, denial::denies_success, object::Object};

pub use self::breaker::HostHealth;
