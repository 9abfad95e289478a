//! Reading an order as ThingSpace does: strictly.

use std::sync::Arc;

use serde::Deserialize;

use super::{Options, refusal::Refusal};
use crate::identity::{AccountName, Device, Digits, IdentifierKind};

/// Devices in one order.
const DEVICES: usize = 10_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body<'a> {
    account_name: Option<&'a str>,
    #[serde(borrow, default)]
    devices: Vec<DeviceBody<'a>>,
    service_plan: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceBody<'a> {
    #[serde(borrow)]
    device_ids: Vec<IdBody<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdBody<'a> {
    kind: &'a str,
    id: &'a str,
}

/// An order that can be executed.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) account: AccountName,
    pub(super) devices: Arc<[Device]>,
    pub(super) service_plan: Option<Arc<str>>,
}

pub(super) fn read(body: &[u8], options: &Options) -> Result<Order, Refusal> {
    if body.is_empty() {
        return Err(Refusal::uws("INPUT_INVALID.RequestUndefined", "The request is not defined."));
    }
    if body.iter().any(|byte| b"'<\\".contains(byte)) {
        return Err(Refusal::uws(
            "INPUT_INVALID.Request.InvalidCharacter",
            "The request has an invalid character.",
        ));
    }
    let body: Body<'_> = serde_json::from_slice(body)
        .map_err(|_| Refusal::uws("DeserializationFailed", "The request could not be read."))?;
    let account = account(body.account_name.unwrap_or(""), options)?;
    let service_plan = plan(body.service_plan, options)?;
    if body.devices.len() > DEVICES {
        return Err(Refusal::uws(
            "INPUT_INVALID.MaxRequestsExceeded",
            "There are more than 10000 devices.",
        ));
    }
    if body.devices.is_empty() {
        return Err(Refusal::uws("REQUEST_FAILED.UnexpectedError", "There are no devices."));
    }
    let devices = body.devices.iter().map(device).collect::<Result<_, _>>()?;
    Ok(Order { account, devices, service_plan })
}

/// The account, if the user may use it.
pub(super) fn account(name: &str, options: &Options) -> Result<AccountName, Refusal> {
    let named = |account: &&AccountName| account.as_str() == name;
    if name.is_empty() {
        Err(Refusal::uws("INPUT_INVALID.Account.NotDefined", "The account is not defined."))
    } else if let Some(account) = options.accounts.iter().find(named) {
        Ok(account.clone())
    } else if options.foreign_accounts.iter().any(|account| named(&account)) {
        Err(Refusal::uws(
            "REQUEST_FAILED.AccountName",
            "The user is not associated with the account.",
        ))
    } else {
        Err(Refusal::uws("REQUEST_FAILED.AccountNotFound", "The account was not found."))
    }
}

fn plan(name: Option<&str>, options: &Options) -> Result<Option<Arc<str>>, Refusal> {
    let Some(name) = name else { return Ok(None) };
    if name.is_empty() {
        return Err(Refusal::uws("REQUEST_FAILED.UnexpectedError", "The service plan is empty."));
    }
    if !options.service_plans.is_empty() && options.service_plans.iter().all(|plan| plan != name) {
        let code = format!("REQUEST_FAILED.{name}.NotFound");
        return Err(Refusal::uws(code, "The service plan was not found."));
    }
    Ok(Some(name.into()))
}

/// Both EID and ICCID, perhaps an IMEI, each once.
fn device(body: &DeviceBody<'_>) -> Result<Device, Refusal> {
    let wrong = || {
        Refusal::uws(
            "INPUT_INVALID.Device.Identifier.Invalid",
            "A device's identifier is not valid.",
        )
    };
    let mut device = Device::default();
    for IdBody { kind, id } in &body.device_ids {
        let kind = IdentifierKind::parse(kind).filter(|kind| *kind != IdentifierKind::Mdn);
        let kind = kind.ok_or_else(|| {
            Refusal::uws("INPUT_INVALID.Device.Kind.Invalid", "A device's kind is not valid.")
        })?;
        let place = device.get_mut(kind);
        if !place.is_empty() || kind.check(id).is_err() {
            return Err(wrong());
        }
        *place = Digits::new(id);
    }
    if device.eid.is_empty() || device.iccid.is_empty() { Err(wrong()) } else { Ok(device) }
}
