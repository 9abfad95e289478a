//! Why a registration is left as it is until an operator acts.

use crate::identity::AccountName;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// Something else registers `public_url` with a secret that this store does not know.
    #[error(
        "another gateway with another store registers the same callbacks.public_url for the {service} callbacks of account \
         {account}, so this one registers no more. Stop one of the two or give each a URL of its own, then run `callbacks \
         register {account} --force` or restart this gateway"
    )]
    Contested { account: AccountName, service: String },
    /// ThingSpace says yes, and its listing does not show it.
    #[error(
        "ThingSpace accepts the registration of the {service} callbacks of account {account} and does not list it, so this \
         gateway registers no more. Ask Verizon, then run `callbacks register {account} --force` or restart this gateway"
    )]
    NotListed { account: AccountName, service: String },
}
