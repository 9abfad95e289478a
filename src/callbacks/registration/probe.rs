//! Whether the public address leads to this gateway.
//!
//! A GET request with the path secret of an account is answered 405 by every gateway that knows the
//! secret, and one with another path 404. So the two answers together prove that a gateway with
//! this store is behind the address. Nothing is stored, and the secret goes where ThingSpace sends
//! it.

use http::StatusCode;

use super::{Registrar, RegistrationError};
use crate::{identity::AccountName, tls_client};

impl Registrar {
    /// Sends two requests to the public address. The inner error says what is wrong with it.
    pub async fn probe(
        &self,
        account: &AccountName,
    ) -> Result<Result<(), String>, RegistrationError> {
        let inner = &*self.0;
        if !inner.accounts.contains_key(account) {
            return Err(RegistrationError::NotConfigured(account.clone()));
        }
        inner.secrets.refresh().await?;
        let (secret, url) = (inner.secrets.path(account), inner.public_url.url());
        // As long as a secret, and no secret of any account.
        let wrong: String = secret.chars().rev().collect();
        let expected = [(secret, StatusCode::METHOD_NOT_ALLOWED), (wrong, StatusCode::NOT_FOUND)];
        for (secret, status) in expected {
            match tls_client::get(url, &format!("{}/{secret}", url.path)).await {
                Ok(answer) if answer.status == status => {}
                Ok(answer) => {
                    return Ok(Err(format!(
                        "something else answers at the public address: HTTP {} instead of {}",
                        answer.status.as_u16(),
                        status.as_u16()
                    )));
                }
                Err(why) => return Ok(Err(format!("the public address cannot be reached: {why}"))),
            }
        }
        Ok(Ok(()))
    }
}
