//! Reads orders as strictly as ThingSpace does.

use std::sync::Arc;

use serde::Deserialize;

use super::{Options, error::TextAnswer};
use crate::identity::{AccountName, Device, Digits, IdentifierKind};

const MAX_DEVICES: usize = 10_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OrderBody<'a> {
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

/// A valid order.
#[derive(Debug)]
pub(super) struct ValidOrder {
    pub(super) account: AccountName,
    pub(super) devices: Arc<[Device]>,
    pub(super) service_plan: Option<Arc<str>>,
}

pub(super) fn read(body: &[u8], options: &Options) -> Result<ValidOrder, TextAnswer> {
    let error = |code: &str, message| Err(TextAnswer::uws(code, message));
    if body.is_empty() {
        return error("INPUT_INVALID.RequestUndefined", "The request is not defined.");
    }
    let body: OrderBody<'_> = read_json(body)?;
    let account = account(body.account_name.unwrap_or(""), options)?;
    let service_plan = plan(body.service_plan, options)?;
    if body.devices.len() > MAX_DEVICES {
        return error("INPUT_INVALID.MaxRequestsExceeded", "There are more than 10000 devices.");
    }
    if body.devices.is_empty() {
        return error("REQUEST_FAILED.UnexpectedError", "There are no devices.");
    }
    let devices = body.devices.iter().map(device).collect::<Result<_, _>>()?;
    Ok(ValidOrder { account, devices, service_plan })
}

/// Reads JSON. Refuses a body with a character that ThingSpace forbids.
pub(super) fn read_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, TextAnswer> {
    if body.iter().any(|byte| b"'<\\".contains(byte)) {
        let code = "INPUT_INVALID.Request.InvalidCharacter";
        return Err(TextAnswer::uws(code, "The request has an invalid character."));
    }
    serde_json::from_slice(body).map_err(|_| TextAnswer::unreadable())
}

/// Returns the account if the user may use it.
pub(super) fn account(name: &str, options: &Options) -> Result<AccountName, TextAnswer> {
    let is_named = |account: &&AccountName| account.as_str() == name;
    if let Some(account) = options.accounts.iter().find(is_named) {
        return Ok(account.clone());
    }
    let (code, message) = if name.is_empty() {
        ("INPUT_INVALID.Account.NotDefined", "The account is not defined.")
    } else if options.foreign_accounts.iter().any(|account| is_named(&account)) {
        ("REQUEST_FAILED.AccountName", "The user is not associated with the account.")
    } else {
        ("REQUEST_FAILED.AccountNotFound", "The account was not found.")
    };
    Err(TextAnswer::uws(code, message))
}

fn plan(name: Option<&str>, options: &Options) -> Result<Option<Arc<str>>, TextAnswer> {
    let Some(name) = name else { return Ok(None) };
    if name.is_empty() {
        let code = "REQUEST_FAILED.UnexpectedError";
        return Err(TextAnswer::uws(code, "The service plan is empty."));
    }
    if !options.service_plans.is_empty() && options.service_plans.iter().all(|plan| plan != name) {
        let code = format!("REQUEST_FAILED.{name}.NotFound");
        return Err(TextAnswer::uws(code, "The service plan was not found."));
    }
    Ok(Some(name.into()))
}

/// Reads a device: an EID, an ICCID and at most one IMEI.
fn device(body: &DeviceBody<'_>) -> Result<Device, TextAnswer> {
    let wrong = |what: &str| {
        let code = format!("INPUT_INVALID.Device.{what}.Invalid");
        TextAnswer::uws(code, &format!("A device's {} is not valid.", what.to_lowercase()))
    };
    let mut device = Device::default();
    for IdBody { kind, id } in &body.device_ids {
        let kind = IdentifierKind::parse(kind)
            .filter(|kind| *kind != IdentifierKind::Mdn)
            .ok_or_else(|| wrong("Kind"))?;
        let field = device.get_mut(kind);
        if !field.is_empty() || kind.check(id).is_err() {
            return Err(wrong("Identifier"));
        }
        *field = Digits::new(id);
    }
    let complete = !device.eid.is_empty() && !device.iccid.is_empty();
    complete.then_some(device).ok_or_else(|| wrong("Identifier"))
}
