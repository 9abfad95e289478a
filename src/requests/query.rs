//! Status queries to ThingSpace about open requests.
//!
//! - [`asker`]: one query per request at a time, whoever needs its answer.
//! - [`poller`]: queries on a schedule, shared between replicas.
//! - [`withheld`]: answers that wait for a callback first.
//!
//! Guarantees: the number of queries depends on the open requests, never on the number of callers.

pub mod asker;
pub mod poller;
pub mod withheld;
