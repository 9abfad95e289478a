//! Why callbacks are not registered.

use crate::{callbacks::secrets::SecretsError, identity::AccountName, thingspace};

/// Why an operation on a registration failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say all")]
pub enum RegistrationError {
    #[error("account {0} is not configured")]
    NotConfigured(AccountName),
    /// The URL of another system is registered.
    #[error(
        "the {service} callbacks of account {account} go to another system, which has registered \
         a URL {}; this gateway does not replace it by itself. Find out whose system that is. If \
         the callbacks should come here, run `callbacks register {account} --force`; the other \
         system gets none from then on",
        place(.host, *.is_own_host)
    )]
    Taken {
        account: AccountName,
        service: String,
        /// The host of the URL. The path may be a secret.
        host: String,
        /// Whether it is the host of `public_url`. Then the port or the path differs.
        is_own_host: bool,
    },
    #[error(transparent)]
    Stopped(#[from] StopReason),
    #[error(
        "ThingSpace accepted the registration of the {service} callbacks of account {account} but \
         does not list it; it is checked again soon"
    )]
    NotListed { account: AccountName, service: String },
    #[error("callbacks.public_url is no http:// or https:// URL")]
    PublicUrl,
    /// ThingSpace did not say what is registered.
    #[error("ThingSpace did not say what is registered: {0}")]
    NotListable(thingspace::Error),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    ThingSpace(#[from] thingspace::Error),
    #[error("the registration ended in a panic")]
    Panicked,
}

impl RegistrationError {
    /// Whether the error says nothing about the registration, which may be right.
    pub(super) fn leaves_it_unknown(&self) -> bool {
        match self {
            Self::NotListable(_) | Self::Secrets(_) | Self::Panicked => true,
            Self::NotConfigured(_)
            | Self::Taken { .. }
            | Self::Stopped(_)
            | Self::NotListed { .. }
            | Self::PublicUrl
            | Self::ThingSpace(_) => false,
        }
    }
}

/// Says where another system's URL leads.
fn place(host: &str, is_own_host: bool) -> String {
    if is_own_host {
        format!("on {host}, the host of callbacks.public_url, but with another port or path")
    } else {
        format!("on {host}")
    }
}

/// Why nothing more is registered until an operator acts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say all")]
pub enum StopReason {
    /// Another gateway registers `public_url` with a path secret that this store does not know.
    #[error(
        "another gateway with another store registers the same callbacks.public_url for the \
         {service} callbacks of account {account}, so this gateway registers no more. Stop one of \
         the two or give each a URL of its own, then run `callbacks register {account} --force` or \
         restart this gateway"
    )]
    Contested { account: AccountName, service: String },
    #[error(
        "ThingSpace accepts the registration of the {service} callbacks of account {account} but \
         does not list it, so this gateway registers no more. Ask Verizon, then run `callbacks \
         register {account} --force` or restart this gateway"
    )]
    NotListed { account: AccountName, service: String },
}
