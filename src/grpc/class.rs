//! The classes of calls, by their path. Limits differ between the classes.

use super::API;
use crate::auth::Method;

const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallClass {
    Order,
    Status,
    Watch,
    Health,
    Reflection,
    /// No such method. The router answers without reading the request.
    Unknown,
}

impl CallClass {
    pub(super) fn of(path: &str) -> Self {
        if let Some(method) = path.strip_prefix(API) {
            return match Method::parse(method) {
                Some(Method::DownloadProfile) => Self::Order,
                Some(Method::GetRequestStatus) => Self::Status,
                Some(Method::WatchRequest) => Self::Watch,
                None => Self::Unknown,
            };
        }
        match path {
            path if path.starts_with(HEALTH) => Self::Health,
            path if path.starts_with(REFLECTION) => Self::Reflection,
            _ => Self::Unknown,
        }
    }
}
