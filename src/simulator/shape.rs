//! Writes status answers. Verizon's page, SDK and service differ in many details.

use serde::Serialize;
use serde_json::{Value, json};

use super::requests::DeviceResult;
use crate::identity::{Device, IdentifierKind};

/// The differences between status answers. The default is the example on the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the types of the other fields are documented")]
pub struct Shape {
    pub list: List,
    /// Whether `ids` is one object instead of an array.
    pub single_id: bool,
    pub identifiers: Identifiers,
    pub words: Words,
    pub overall: Overall,
    /// Whether there are undocumented fields, and a status in each element of `ids`, as in the
    /// page's table.
    pub extras: bool,
    /// Whether IMEIs are JSON numbers.
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
    /// There is no list. The overall status holds for all devices, so [`Overall::Early`] does not
    /// apply.
    Absent,
}

/// The identifiers of each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identifiers {
    /// Only the ICCID, if the order has one.
    #[default]
    Iccid,
    /// All identifiers that the order has.
    All,
}

/// The spelling of a status.
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

/// The status of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overall {
    /// Success as soon as one device has succeeded, as in the page's example.
    #[default]
    Early,
    /// Pending while a device is pending, then Failed if a device has failed, else Success.
    Honest,
}

impl Shape {
    /// Returns the shape that Verizon's SDK reads.
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
    documented: Option<Vec<SubRequest>>,
    #[serde(rename = "subrequests", skip_serializing_if = "Option::is_none")]
    sdk: Option<Vec<SubRequest>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paging: Option<Value>,
}

#[derive(Serialize)]
struct SubRequest {
    ids: IdList,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u8>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum IdList {
    Many(Vec<ShownId>),
    One(Option<ShownId>),
}

#[derive(Serialize)]
struct ShownId {
    id: Value,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
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
            let devices = devices.iter().zip(results).enumerate();
            devices.map(|(i, (device, result))| self.sub(i, device, *result)).collect()
        };
        let answer = StatusBody {
            request_id,
            status: overall.unwrap_or_else(|| self.words.write(self.overall(results), 0)),
            documented: (self.list == List::Documented).then(subs),
            sdk: (self.list == List::Sdk).then(subs),
            paging: self.extras.then(|| json!({"hasMoreData": false, "next": null})),
        };
        serde_json::to_vec(&answer).expect("texts, numbers and lists have a JSON form")
    }

    fn overall(self, results: &[DeviceResult]) -> DeviceResult {
        let has = |wanted: DeviceResult| results.contains(&wanted);
        let early = self.overall == Overall::Early && self.list != List::Absent;
        let is_open =
            |result: &DeviceResult| matches!(result, DeviceResult::Pending | DeviceResult::Word(_));
        if early && has(DeviceResult::Success) {
            DeviceResult::Success
        } else if results.iter().any(is_open) {
            DeviceResult::Pending
        } else if has(DeviceResult::Failed) {
            DeviceResult::Failed
        } else {
            DeviceResult::Success
        }
    }

    fn sub(self, index: usize, device: &Device, result: DeviceResult) -> SubRequest {
        let status = self.words.write(result, index);
        let iccid_only = self.identifiers == Identifiers::Iccid && !device.iccid.is_empty();
        let mut ids = device
            .present()
            .filter(|(kind, _)| !iccid_only || *kind == IdentifierKind::Iccid)
            .map(|(kind, digits)| {
                let text = digits.as_str();
                let numeric = self.numeric_imei && kind == IdentifierKind::Imei;
                let number: Option<u64> = text.parse().ok().filter(|_| numeric);
                ShownId {
                    id: number.map_or_else(|| json!(text), |number| json!(number)),
                    kind: kind.as_str(),
                    status: self.extras.then_some(status),
                }
            });
        let ids =
            if self.single_id { IdList::One(ids.next()) } else { IdList::Many(ids.collect()) };
        SubRequest { ids, status, attempt: self.extras.then_some(1) }
    }
}
