//! Reads the answer to a status query. If an answer or a sub-request contradicts itself, its status
//! is not used.

use serde_json::value::RawValue;

use crate::{
    identity::{AccountName, Device, Digits, IdentifierKind, RequestId},
    thingspace::{
        StatusAnswer, StatusClass,
        http::{
            body::{DeviceParts, ReplyBody},
            json::Json,
            object::Object,
            verdict::is_request_id,
            words::plain,
        },
    },
};

/// Fields of a sub-request that hold identifiers.
const IDS: [&str; 2] = ["ids", "deviceIds"];

struct QueriedRequest<'a> {
    account: &'a AccountName,
    request: &'a RequestId,
}

impl QueriedRequest<'_> {
    /// Returns whether an answer or a sub-request names no other request and no other account, and
    /// has no field twice.
    fn fits(&self, object: &Object<'_>, parts: &DeviceParts<'_, '_>) -> bool {
        let once = |names: &[&str]| object.values(names).count() <= 1;
        parts.are_of_request(self.request)
            && parts.are_of_account(self.account)
            && once(&["status"])
            && once(&IDS)
            && object.values_where(is_sub_requests).count() <= 1
    }
}

fn is_sub_requests(name: &str) -> bool {
    matches!(&*plain(name), "subrequests" | "subrequest")
}

/// Reads the answer if it is about this account and this request.
pub(crate) fn status(
    body: &ReplyBody<'_>,
    account: &AccountName,
    request: &RequestId,
) -> Option<StatusAnswer> {
    let root = body.object.as_ref()?;
    let parts = DeviceParts::of(root);
    let queried = QueriedRequest { account, request };
    if !queried.fits(root, &parts) {
        return None;
    }
    let overall = StatusClass::of(&root.text(&["status"])?);
    let read = |value: &RawValue| sub_request(&serde_json::from_str(value.get()).ok()?, &queried);
    let devices = root.elements_where(is_sub_requests).map(read).collect::<Option<Vec<_>>>()?;
    // Without devices and a request id, the answer may be an error of this query.
    if devices.is_empty() && root.values_where(is_request_id).next().is_none() {
        return None;
    }
    let mut answer = StatusAnswer { overall, devices };
    answer.agree(|_| None);
    let all_succeeded = answer.devices.iter().all(|(_, class)| *class == StatusClass::Succeeded);
    // A failed request whose devices all succeeded contradicts itself. A successful request with a
    // pending device does not: the documented example is one.
    let is_doubtful = match overall {
        StatusClass::Failed => !answer.devices.is_empty() && all_succeeded,
        _ => parts.deny_success(),
    };
    if is_doubtful {
        if matches!(overall, StatusClass::Succeeded | StatusClass::Failed) {
            answer.overall = StatusClass::Unknown;
        }
        for (_, class) in &mut answer.devices {
            if *class == StatusClass::Succeeded {
                *class = StatusClass::Unknown;
            }
        }
    }
    Some(answer)
}

/// Reads the device and the status of a sub-request. Returns `None` if an identifier is no object.
fn sub_request(sub: &Object<'_>, queried: &QueriedRequest<'_>) -> Option<(Device, StatusClass)> {
    let ids = sub.elements(&IDS).map(|id| serde_json::from_str(id.get()).ok());
    let ids = ids.collect::<Option<Vec<Object<'_>>>>()?;
    let (device, is_one_device) = device(&ids);
    let words = std::iter::once(sub).chain(&ids).flat_map(|part| part.values(&["status"]));
    let mut classes = words.map(|word| {
        Json::of(word).id().map_or(StatusClass::Unknown, |word| StatusClass::of(&word))
    });
    let first = classes.next().unwrap_or(StatusClass::Unknown);
    let agree = classes.all(|class| class == first);
    let parts = DeviceParts::of(sub);
    let is_consistent = agree
        && is_one_device
        && queried.fits(sub, &parts)
        && !(first == StatusClass::Succeeded && parts.deny_success());
    Some((device, if is_consistent { first } else { StatusClass::Unknown }))
}

/// Returns the device with these identifiers, and whether they all name one device. Identifiers of
/// unknown kinds or of a wrong form are left out.
fn device(ids: &[Object<'_>]) -> (Device, bool) {
    let (mut device, mut is_one_device) = (Device::default(), true);
    for entry in ids {
        let (mut kinds, mut values) = (entry.values(&["kind"]), entry.values(&["id"]));
        let text = |value: Option<&RawValue>| Json::of(value?).id();
        let (kind, id) = (text(kinds.next()), text(values.next()));
        is_one_device &= kinds.next().is_none() && values.next().is_none();
        let kind = kind.and_then(|kind| IdentifierKind::parse(kind.trim()));
        let (Some(kind), Some(id)) = (kind, id.as_deref().map(str::trim)) else { continue };
        if kind.check(id).is_ok() {
            let known = device.get_mut(kind);
            is_one_device &= known.is_empty() || known.as_str() == id;
            *known = Digits::new(id);
        }
    }
    (device, is_one_device)
}
