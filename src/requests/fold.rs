//! Computes states from the events of logs. Pure functions without I/O, clocks and randomness.
//!
//! - [`event`]: the stored events, decoded.
//! - [`state`]: the state of a request, folded from its log.
//! - [`order`]: the state of an order, folded from its log.
//!
//! Every replica that folds the same events computes the same states and revisions.

pub mod event;
pub(crate) mod order;
pub(crate) mod state;
