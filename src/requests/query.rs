//! Status queries to ThingSpace about open requests.
//!
//! - [`status_queries`]: sends queries, at most one per request at a time.
//! - [`poller`]: polls open requests on a schedule that all replicas share.
//! - [`withheld`]: final statuses that wait for the callback with their reason.
//!
//! The number of queries depends on the open requests, never on the number of callers.

pub(crate) mod poller;
pub(crate) mod status_queries;
pub(crate) mod withheld;
