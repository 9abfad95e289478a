//! The answer to a status call. What contradicts itself is not believed, at the level on which it
//! stands: the whole answer, or one sub-request.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Id, Text, class, one_or_many};
use crate::{
    identity::{AccountName, Device, Digits, IdentifierKind, RequestId},
    thingspace::{
        Object, StatusAnswer, StatusClass, denies_success,
        http::{verdict::is_request_id, words::plain},
    },
};

/// What was asked for.
struct Asked<'a> {
    account: &'a AccountName,
    request: &'a RequestId,
}

impl Asked<'_> {
    /// Whether an answer or a sub-request names no other request and no other account, and says
    /// each thing once.
    fn fits(&self, object: &Object<'_>) -> bool {
        let is_request = |id: &RawValue| {
            serde_json::from_str(id.get())
                .is_ok_and(|Id(id)| id.eq_ignore_ascii_case(self.request.as_str()))
        };
        object.values_where(is_request_id).all(is_request)
            && object.is_of_account(self.account)
            && ["status", "ids"].iter().all(|name| object.values(&[name]).count() <= 1)
            && object.values_where(is_sub_requests).count() <= 1
    }
}

fn is_sub_requests(name: &str) -> bool {
    matches!(&*plain(name), "subrequests" | "subrequest")
}

/// The answer, if it is about the request and the account that were asked for.
pub(crate) fn status(
    body: &[u8],
    account: &AccountName,
    request: &RequestId,
) -> Option<StatusAnswer> {
    let text = std::str::from_utf8(body).ok()?;
    let root: Object<'_> = serde_json::from_str(text).ok()?;
    let asked = Asked { account, request };
    if !asked.fits(&root) {
        return None;
    }
    let mut overall = class(&root.text(&["status"])?);
    let read = |value: &RawValue| SubRequest::read(value.get(), &asked);
    let subs = root.elements_where(is_sub_requests).map(read).collect::<Option<Vec<_>>>()?;
    // An error that names no request may be about this very question.
    if subs.is_empty() && root.values_where(is_request_id).next().is_none() {
        return None;
    }
    let mut devices = agreed(subs);
    let all_succeeded = devices.iter().all(|(_, class)| *class == StatusClass::Succeeded);
    // A failure of the whole without one that failed contradicts itself. The opposite does not: the
    // documented example says Success above a device that is pending.
    let is_doubtful = match overall {
        StatusClass::Failed => !devices.is_empty() && all_succeeded,
        _ => denies_success(text),
    };
    if is_doubtful {
        if matches!(overall, StatusClass::Succeeded | StatusClass::Failed) {
            overall = StatusClass::Unknown;
        }
        for (_, class) in devices.iter_mut().filter(|(_, class)| *class == StatusClass::Succeeded) {
            *class = StatusClass::Unknown;
        }
    }
    Some(StatusAnswer { overall, devices })
}

#[derive(Deserialize)]
struct SubRequest {
    #[serde(default, deserialize_with = "one_or_many")]
    ids: Vec<Entry>,
    #[serde(default)]
    status: Option<Text>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    kind: Option<Text>,
    #[serde(default)]
    id: Option<Id>,
    #[serde(default)]
    status: Option<Text>,
}

impl SubRequest {
    fn read(text: &str, asked: &Asked<'_>) -> Option<(Device, StatusClass)> {
        let object: Object<'_> = serde_json::from_str(text).ok()?;
        let sub: Self = serde_json::from_str(text).ok()?;
        let (device, is_one) = sub.device();
        let class = match sub.class() {
            _ if !is_one || !asked.fits(&object) => StatusClass::Unknown,
            StatusClass::Succeeded if denies_success(text) => StatusClass::Unknown,
            class => class,
        };
        Some((device, class))
    }

    /// Its device, and whether its ids agree on one.
    fn device(&self) -> (Device, bool) {
        let (mut device, mut is_one) = (Device::default(), true);
        for id in &self.ids {
            let (Some(kind), Some(id)) = (&id.kind, &id.id) else { continue };
            if let Some(kind) =
                IdentifierKind::parse(&kind.0).filter(|kind| kind.check(&id.0).is_ok())
            {
                let known = device.get_mut(kind);
                is_one &= known.is_empty() || known.as_str() == id.0;
                *known = Digits::new(&id.0);
            }
        }
        (device, is_one)
    }

    /// Its own status and those of its ids, if they agree.
    fn class(&self) -> StatusClass {
        let of_ids = self.ids.iter().filter_map(|id| id.status.as_ref());
        let mut classes = self.status.iter().chain(of_ids).map(|status| class(&status.0));
        let first = classes.next().unwrap_or(StatusClass::Unknown);
        if classes.all(|class| class == first) { first } else { StatusClass::Unknown }
    }
}

/// The devices, each with the status that all entries about it agree on.
fn agreed(mut devices: Vec<(Device, StatusClass)>) -> Vec<(Device, StatusClass)> {
    let mut classes: HashMap<Device, StatusClass> = HashMap::new();
    for (device, class) in devices.iter().filter(|(device, _)| device.present().next().is_some()) {
        let agreed = classes.entry(device.clone()).or_insert(*class);
        if agreed != class {
            *agreed = StatusClass::Unknown;
        }
    }
    for (device, class) in &mut devices {
        if let Some(agreed) = classes.get(device) {
            *class = *agreed;
        }
    }
    devices
}
