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
        "the {service} callbacks of account {account} go to {host}, which is not this gateway; \
         `callbacks register --force` would make them come here instead"
    )]
    Taken {
        account: AccountName,
        service: String,
        /// The host of the URL. The path may be a secret.
        host: String,
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
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    ThingSpace(#[from] thingspace::Error),
    #[error("the registration ended in a panic")]
    Panicked,
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
