//! What a call is about, for its log line and its metrics.

use std::sync::{Arc, OnceLock};

use crate::identity::{AccountName, RequestId};

/// Who makes a call, and the account and the request that it is about, for its log line and its
/// metrics. An extension of every request. The layer that authenticates sets the caller, and the
/// service sets the rest after it has checked the message.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallSubject(Arc<CallSubjectInner>);

#[derive(Debug, Default)]
struct CallSubjectInner {
    caller: OnceLock<Option<Arc<str>>>,
    about: OnceLock<(AccountName, Option<RequestId>)>,
}

impl CallSubject {
    /// `None`: the caller is anonymous.
    pub(crate) fn set_caller(&self, name: Option<Arc<str>>) {
        let _ = self.0.caller.set(name);
    }

    pub(crate) fn set(&self, account: &AccountName, request: Option<&RequestId>) {
        // A call has one subject, so a second value is ignored.
        let _ = self.0.about.set((account.clone(), request.cloned()));
    }

    /// Returns the caller, if it is authenticated.
    pub(super) fn caller(&self) -> Option<&str> {
        Some(self.0.caller.get()?.as_deref().unwrap_or(ANONYMOUS))
    }

    /// Returns the account and the request, if they are known.
    pub(super) fn about(&self) -> Option<&(AccountName, Option<RequestId>)> {
        self.0.about.get()
    }
}

/// The caller if nobody is asked for credentials.
const ANONYMOUS: &str = "anonymous";
