//! How a status answer is written. Verizon's page, its SDK and its service do not agree.

use serde::Serialize;

use super::requests::Outcome;
use crate::identity::{Device, IdentifierKind};

/// The ways in which status answers differ. The default is the page's example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    pub list: List,
    /// `ids` is one object (the most telling identifier) instead of an array.
    pub single_id: bool,
    pub identifiers: Identifiers,
    pub words: Words,
    pub overall: Overall,
    /// Fields that nobody documented, and a status in each element of `ids` as the page's table has
    /// it.
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
    /// There is none. The overall status then holds for all, so it is never early.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identifiers {
    /// Only the ICCID, where there is one.
    #[default]
    Iccid,
    /// All that were ordered.
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
    /// Another spelling from device to device.
    Mixed,
}

/// What the overall status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overall {
    /// Success as soon as one device succeeded, above others that are pending: the page's example.
    #[default]
    Early,
    /// Pending as long as a device is, then Failed if one failed.
    Honest,
}

impl Shape {
    /// Everything as Verizon's SDK models it.
    pub fn sdk() -> Self {
        Self { list: List::Sdk, single_id: true, words: Words::Sdk, ..Self::default() }
    }
}

impl Words {
    fn write(self, outcome: Outcome, index: usize) -> &'static str {
        let spelling = match self {
            Self::Documented => 0,
            Self::Sdk => 1,
            Self::Upper => 2,
            Self::Mixed => index % 4,
        };
        match outcome {
            Outcome::Pending => ["Pending", "Pending", "PENDING", "pending"][spelling],
            Outcome::Success => ["Success", "Success", "SUCCESS", "success"][spelling],
            Outcome::Failed => ["Failed", "Failure", "FAILED", "failure"][spelling],
            Outcome::Word(word) => word,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    request_id: &'a str,
    status: &'static str,
    #[serde(rename = "subRequests", skip_serializing_if = "Option::is_none")]
    documented: Option<Vec<Sub<'a>>>,
    #[serde(rename = "subrequests", skip_serializing_if = "Option::is_none")]
    sdk: Option<Vec<Sub<'a>>>,
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
struct Sub<'a> {
    ids: Ids<'a>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u8>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Ids<'a> {
    Many(Vec<Identifier<'a>>),
    One(Option<Identifier<'a>>),
}

#[derive(Serialize)]
struct Identifier<'a> {
    id: Number<'a>,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Number<'a> {
    Text(&'a str),
    Bare(u64),
}

impl Shape {
    /// The body of a status answer. `devices` and `outcomes` run in step.
    pub(super) fn write(
        self,
        request_id: &str,
        overall: Option<&'static str>,
        devices: &[Device],
        outcomes: &[Outcome],
    ) -> Vec<u8> {
        let subs = || {
            devices
                .iter()
                .zip(outcomes)
                .enumerate()
                .map(|(i, (device, o))| self.sub(i, device, *o))
                .collect()
        };
        let answer = Answer {
            request_id,
            status: overall.unwrap_or_else(|| self.words.write(self.overall(outcomes), 0)),
            documented: (self.list == List::Documented).then(subs),
            sdk: (self.list == List::Sdk).then(subs),
            paging: self.extras.then_some(Paging { has_more_data: false, next: None }),
        };
        serde_json::to_vec(&answer).expect("texts, numbers and lists have a JSON form")
    }

    fn overall(self, outcomes: &[Outcome]) -> Outcome {
        let has = |wanted: Outcome| outcomes.contains(&wanted);
        let early = self.overall == Overall::Early && self.list != List::Absent;
        let open =
            outcomes.iter().any(|outcome| matches!(outcome, Outcome::Pending | Outcome::Word(_)));
        match () {
            () if early && has(Outcome::Success) => Outcome::Success,
            () if open => Outcome::Pending,
            () if has(Outcome::Failed) => Outcome::Failed,
            () => Outcome::Success,
        }
    }

    fn sub(self, index: usize, device: &Device, outcome: Outcome) -> Sub<'_> {
        let status = self.words.write(outcome, index);
        let iccid_only = self.identifiers == Identifiers::Iccid && !device.iccid.is_empty();
        let mut ids = device
            .present()
            .filter(|(kind, _)| !iccid_only || *kind == IdentifierKind::Iccid)
            .map(|(kind, digits)| {
                let text = digits.as_str();
                let bare = (self.numeric_imei && kind == IdentifierKind::Imei)
                    .then(|| text.parse().ok())
                    .flatten();
                Identifier {
                    id: bare.map_or(Number::Text(text), Number::Bare),
                    kind: kind.as_str(),
                    status: self.extras.then_some(status),
                }
            });
        let ids = if self.single_id { Ids::One(ids.next()) } else { Ids::Many(ids.collect()) };
        Sub { ids, status, attempt: self.extras.then_some(1) }
    }
}
