//! The endpoints of ThingSpace that the gateway calls.

use http::Method;

use crate::identity::{AccountName, RequestId};

/// An endpoint with the values in its path. Another system placed an `external`
/// request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Endpoint<'a> {
    Token,
    Login,
    Download,
    Status { account: &'a AccountName, request: &'a RequestId, external: bool },
    Callbacks { account: &'a AccountName },
    RegisterCallback { account: &'a AccountName },
    DeregisterCallback { account: &'a AccountName, service: &'a str },
}

impl<'a> Endpoint<'a> {
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

    /// Returns whether a call changes nothing, so that it may be repeated.
    pub(crate) fn has_no_effect(self) -> bool {
        matches!(self, Self::Status { .. } | Self::Callbacks { .. })
    }

    /// Returns whether the breaker counts the outcome. It ignores queries about external requests,
    /// because callers could choose an id for which ThingSpace fails.
    pub(super) fn counts(self) -> bool {
        !matches!(self, Self::Status { external: true, .. })
    }

    /// Returns the path below the base URL, with names in place of values.
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

    pub(in crate::thingspace::http) fn segments(self) -> impl Iterator<Item = &'a str> {
        let (account, last) = match self {
            Self::Token | Self::Login | Self::Download => ("", ""),
            Self::Status { account, request, .. } => (account.as_str(), request.as_str()),
            Self::Callbacks { account } | Self::RegisterCallback { account } => {
                (account.as_str(), "")
            }
            Self::DeregisterCallback { account, service } => (account.as_str(), service),
        };
        self.template().split('/').skip(1).map(move |segment| match segment {
            "{account}" => account,
            "{request}" | "{service}" => last,
            segment => segment,
        })
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Token => "application/x-www-form-urlencoded",
            // ThingSpace requires it also for calls without a body.
            _ => "application/json",
        }
    }
}
