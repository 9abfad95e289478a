//! The calls there are.

use http::Method;

use crate::identity::{AccountName, RequestId};

/// What is asked of ThingSpace.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Endpoint<'a> {
    Token,
    Login,
    Download,
    /// `elsewhere`: the request was placed elsewhere, if there is one; callers choose its id.
    Status {
        account: &'a AccountName,
        request: &'a RequestId,
        elsewhere: bool,
    },
    Callbacks {
        account: &'a AccountName,
    },
    RegisterCallback {
        account: &'a AccountName,
    },
    DeregisterCallback {
        account: &'a AccountName,
        service: &'a str,
    },
}

impl Endpoint<'_> {
    pub(super) fn method(self) -> Method {
        match self {
            Self::Token | Self::Login | Self::Download | Self::RegisterCallback { .. } => {
                Method::POST
            }
            Self::Status { .. } | Self::Callbacks { .. } => Method::GET,
            Self::DeregisterCallback { .. } => Method::DELETE,
        }
    }

    pub(crate) fn is_order(self) -> bool {
        matches!(self, Self::Download)
    }

    /// Asking changes nothing, however often.
    pub(crate) fn has_no_effect(self) -> bool {
        matches!(self, Self::Status { .. } | Self::Callbacks { .. })
    }

    /// Whether its outcome says how its host is doing. A query about a request that was placed
    /// elsewhere says nothing: callers could choose an id for which ThingSpace fails.
    pub(super) fn counts(self) -> bool {
        !matches!(self, Self::Status { elsewhere: true, .. })
    }

    pub(super) fn template(self) -> &'static str {
        match self {
            Self::Token => "/ts/v1/oauth2/token",
            Self::Login => "/m2m/v1/session/login",
            Self::Download => "/m2m/v1/devices/profile/actions/download",
            Self::Status { .. } => "/m2m/v2/accounts/{account}/requests/{request}/status",
            Self::Callbacks { .. } | Self::RegisterCallback { .. } => "/m2m/v1/callbacks/{account}",
            Self::DeregisterCallback { .. } => "/m2m/v1/callbacks/{account}/name/{service}",
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Token => "application/x-www-form-urlencoded",
            // ThingSpace demands it also of calls without a body.
            Self::Login
            | Self::Download
            | Self::Status { .. }
            | Self::Callbacks { .. }
            | Self::RegisterCallback { .. }
            | Self::DeregisterCallback { .. } => "application/json",
        }
    }
}
