//! Writes status answers. Verizon's page, SDK and service differ in many details.

use serde::Serialize;

use super::requests::DeviceResult;
use crate::identity::{Device, IdentifierKind};

/// The differences between status answers. The default is the example on the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    pub list: List,
    /// `ids` is one object instead of an array.
    pub single_id: bool,
    pub identifiers: Identifiers,
    pub words: Words,
    pub overall: Overall,
    /// Undocumented fields, and a status in each element of `ids`, as in the page's table.
    pub extras: bool,
    /// IMEIs as JSON numbers.
    pub numeric_imei: bool,
}

/// The name of the list of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum List {
    /// `subRequests`
    #[default]
    Documented,
    /// `subrequests`
    Sdk,
    /// None. Then the overall status holds for all devices, so it is never early.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identifiers {
    /// Only the ICCID, if there is one.
    #[default]
    Iccid,
    /// All of the order.
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Words {
    /// Success, Failed, Pending
    #[default]
    Documented,
    /// Success, Failure, Pending
    Sdk,
    /// SUCCESS, FAILED, PENDING
    Upper,
    /// A different spelling for each device.
    Mixed,
}

/// The overall status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overall {
    /// Success as soon as one device has succeeded, as in the page's example.
    #[default]
    Early,
    /// Pending while a device is, then Failed if one has failed.
    Honest,
}

impl Shape {
    /// Everything as Verizon's SDK models it.
    pub fn sdk() -> Self {
        Self { list: List::Sdk, single_id: true, words: Words::Sdk, ..Self::default() }
    }
}

impl Words {
    fn write(self, result: DeviceResult, index: usize) -> &'static str {
        let spelling = match self {
            Self::Documented => 0,
            Self::Sdk => 1,
            Self::Upper => 2,
            Self::Mixed => index % 4,
        };
        match result {
            DeviceResult::Pending => ["Pending", "Pending", "PENDING", "pending"][spelling],
            DeviceResult::Success => ["Success", "Success", "SUCCESS", "success"][spelling],
            DeviceResult::Failed => ["Failed", "Failure", "FAILED", "failure"][spelling],
            DeviceResult::Word(word) => word,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusBody<'a> {
    request_id: &'a str,
    status: &'static str,
    #[serde(rename = "subRequests", skip_serializing_if = "Option::is_none")]
    documented: Option<Vec<SubRequest<'a>>>,
    #[serde(rename = "subrequests", skip_serializing_if = "Option::is_none")]
    sdk: Option<Vec<SubRequest<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paging: Option<Paging>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Paging {
    has_more_data: bool,
    next: Option<()>,
}

#[derive(Serialize)]
struct SubRequest<'a> {
    ids: IdList<'a>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u8>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum IdList<'a> {
    Many(Vec<ShownId<'a>>),
    One(Option<ShownId<'a>>),
}

#[derive(Serialize)]
struct ShownId<'a> {
    id: IdValue<'a>,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum IdValue<'a> {
    Text(&'a str),
    Bare(u64),
}

impl Shape {
    /// Writes the body of a status answer. `results` are those of `devices`, in order.
    pub(super) fn write(
        self,
        request_id: &str,
        overall: Option<&'static str>,
        devices: &[Device],
        results: &[DeviceResult],
    ) -> Vec<u8> {
        let subs = || {
            devices
                .iter()
                .zip(results)
                .enumerate()
                .map(|(i, (device, result))| self.sub(i, device, *result))
                .collect()
        };
        let answer = StatusBody {
            request_id,
            status: overall.unwrap_or_else(|| self.words.write(self.overall(results), 0)),
            documented: (self.list == List::Documented).then(subs),
            sdk: (self.list == List::Sdk).then(subs),
            paging: self.extras.then_some(Paging { has_more_data: false, next: None }),
        };
        serde_json::to_vec(&answer).expect("texts, numbers and lists have a JSON form")
    }

    fn overall(self, results: &[DeviceResult]) -> DeviceResult {
        let has = |wanted: DeviceResult| results.contains(&wanted);
        let early = self.overall == Overall::Early && self.list != List::Absent;
        let open = results
            .iter()
            .any(|result| matches!(result, DeviceResult::Pending | DeviceResult::Word(_)));
        match () {
            () if early && has(DeviceResult::Success) => DeviceResult::Success,
            () if open => DeviceResult::Pending,
            () if has(DeviceResult::Failed) => DeviceResult::Failed,
            () => DeviceResult::Success,
        }
    }

    fn sub(self, index: usize, device: &Device, result: DeviceResult) -> SubRequest<'_> {
        let status = self.words.write(result, index);
        let iccid_only = self.identifiers == Identifiers::Iccid && !device.iccid.is_empty();
        let mut ids = device
            .present()
            .filter(|(kind, _)| !iccid_only || *kind == IdentifierKind::Iccid)
            .map(|(kind, digits)| {
                let text = digits.as_str();
                let bare = (self.numeric_imei && kind == IdentifierKind::Imei)
                    .then(|| text.parse().ok())
                    .flatten();
                ShownId {
                    id: bare.map_or(IdValue::Text(text), IdValue::Bare),
                    kind: kind.as_str(),
                    status: self.extras.then_some(status),
                }
            });
        let ids =
            if self.single_id { IdList::One(ids.next()) } else { IdList::Many(ids.collect()) };
        SubRequest { ids, status, attempt: self.extras.then_some(1) }
    }
}
