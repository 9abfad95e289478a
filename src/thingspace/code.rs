//! Error codes: found in any of ThingSpace's envelopes, and what they mean.
//!
//! The message beside a code is never looked at: it is dynamic, and may quote the request.

use serde::Deserialize;

use super::{Refusal, RefusalKind, wire::Text};

const MAX_CODE_CHARS: usize = 128;

/// A word with so many digits names a device or is a token: an MDN has 10, the API manager's codes have 6.
const MASKED_FROM_DIGITS: usize = 8;

/// An error code as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Code {
    text: String,
    gateway: Option<u32>,
}

/// The class that stands in the code after the service's name, and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    InputInvalid,
    RequestFailed,
    OnHold,
    Cancelled,
}

/// The envelopes: M2M (`errorCode`), the API manager's (`fault`, or its fields unwrapped), OAuth's (`error`).
#[derive(Deserialize)]
struct Envelope {
    #[serde(default, rename = "errorCode")]
    error_code: Option<Text>,
    #[serde(default)]
    fault: Option<Fault>,
    #[serde(default)]
    code: Option<Text>,
    #[serde(default)]
    error: Option<Text>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: Option<Text>,
}

impl Code {
    /// `None`: not a readable error envelope (XML, HTML, text, nothing).
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let envelope: Envelope = serde_json::from_slice(body).ok()?;
        let plain = |code: Text| Self { text: code.0, gateway: None };
        let gateway = |code: Text| Self { gateway: code.0.parse().ok(), text: code.0 };
        let code = envelope.error_code.map(plain);
        let code = code.or_else(|| envelope.fault.and_then(|fault| fault.code).map(gateway));
        let code = code.or_else(|| envelope.code.map(gateway));
        let code = code.or_else(|| envelope.error.map(plain));
        code.filter(|code| !code.shown().is_empty())
    }

    /// The session was refused, whatever the HTTP status says.
    pub(super) fn refuses_session(&self) -> bool {
        self.text.contains(".SessionToken.")
    }

    /// The bearer was refused by the API manager. 900906 to 900909 (no such resource, blocked, forbidden, not
    /// subscribed) mean it only together with a 401.
    pub(super) fn refuses_bearer(&self, status: u16) -> bool {
        let last = if status == 401 { 900_909 } else { 900_905 };
        self.gateway.is_some_and(|code| (900_900..=last).contains(&code))
    }

    pub(super) fn throttles(&self) -> bool {
        self.gateway.is_some_and(|code| (900_800..=900_807).contains(&code))
    }

    /// ThingSpace proper looked at the call, not only its API manager or its authorization server.
    pub(super) fn is_from_thingspace(&self) -> bool {
        self.class().is_some()
    }

    /// The request waits for something, for instance a credit approval: it was not refused.
    pub(super) fn is_on_hold(&self) -> bool {
        matches!(self.class(), Some((Class::OnHold, _)))
    }

    pub(super) fn refusal(&self, status: u16) -> Refusal {
        Refusal { kind: self.kind(), code: self.shown(), status }
    }

    fn class(&self) -> Option<(Class, &str)> {
        [
            ("INPUT_INVALID.", Class::InputInvalid),
            ("REQUEST_FAILED.", Class::RequestFailed),
            ("REQUEST_ONHOLD.", Class::OnHold),
            ("REQUEST_CANCELLED.", Class::Cancelled),
        ]
        .into_iter()
        .find_map(|(token, class)| self.text.split_once(token).map(|(_service, rest)| (class, rest)))
    }

    /// The pages of the eSIM calls put the bare HTTP status in place of the code: a 400 or 422 then says that ThingSpace
    /// did not like the input, and nothing finer.
    fn kind(&self) -> RefusalKind {
        let Some((class, rest)) = self.class() else {
            return match self.text.as_str() {
                "400" | "422" | "INVALID_PARAMETER" if self.gateway.is_none() => RefusalKind::InvalidInput,
                _ => RefusalKind::Other,
            };
        };
        let lower = rest.to_ascii_lowercase();
        match lower.as_str() {
            "accountnotfound" | "account.notfound" => RefusalKind::AccountNotFound,
            "accountname" | "noaccounts" if class == Class::RequestFailed => RefusalKind::AccountForbidden,
            "multipleaccounts" => RefusalKind::InvalidInput,
            "devicenotfound" | "device.notfound" => RefusalKind::DeviceNotFound,
            "devicestate.invalid" | "devicealreadyactive" => RefusalKind::DeviceState,
            // The gateway's own fault, not the caller's.
            "requestundefined" => RefusalKind::Other,
            // The plan's own name stands before `.NotFound`.
            _ if class == Class::RequestFailed && names_plan(&lower) => RefusalKind::PlanNotFound,
            _ if class == Class::InputInvalid => RefusalKind::InvalidInput,
            _ => RefusalKind::Other,
        }
    }

    fn shown(&self) -> String {
        shown(&self.text)
    }
}

/// A code as it may be shown: short, and of nothing but what codes are made of. What is no code but an identity or a token, for
/// which a text in a code's place has room, is masked.
pub(crate) fn shown(code: &str) -> String {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut masked = String::with_capacity(code.len());
    for word in code.split_inclusive(|c| !in_word(c)) {
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        if digits < MASKED_FROM_DIGITS {
            masked.push_str(word);
        } else {
            masked.push('_');
            masked.push_str(word.trim_start_matches(in_word));
        }
    }
    masked
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        .take(MAX_CODE_CHARS)
        .collect()
}

fn names_plan(rest: &str) -> bool {
    let another = ["account", "device", "request", "user", "customfield", "leadid"];
    rest.strip_suffix("notfound").is_some_and(|head| {
        head.contains("serviceplan")
            || (head.ends_with('.') && !another.iter().any(|word| head.starts_with(word)))
    })
}

/// The code is one of the API manager's (900906, no such path; 700700, API blocked; …): ThingSpace proper saw nothing.
pub(super) fn is_by_api_manager(refusal: &Refusal) -> bool {
    refusal.code.len() == 6 && refusal.code.bytes().all(|byte| byte.is_ascii_digit())
}

/// ThingSpace's documents do not say how it answers for an unknown request: a code that names the request id, or a
/// 404 of ThingSpace itself that is not about the account. A 404 of the API manager (a wrong path) says nothing.
pub(super) fn says_unknown_request(refusal: &Refusal) -> bool {
    let code = refusal.code.to_ascii_lowercase();
    let names_request = ["requestid", "request.notfound", "requestnotfound"].iter().any(|n| code.contains(n));
    let about_account = matches!(refusal.kind, RefusalKind::AccountNotFound | RefusalKind::AccountForbidden);
    names_request || (refusal.status == 404 && !is_by_api_manager(refusal) && !about_account)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Code {
        Code::read(serde_json::json!({ "errorCode": text }).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn kinds() {
        let cases = [
            ("UnifiedWebService.INPUT_INVALID.Request.InvalidCharacter", RefusalKind::InvalidInput),
            ("UnifiedWebService.INPUT_INVALID.RequestUndefined", RefusalKind::Other),
            ("UnifiedWebService.REQUEST_FAILED.UnexpectedError", RefusalKind::Other),
            ("UnifiedWebService.INPUT_INVALID.Account.NotDefined", RefusalKind::InvalidInput),
            ("UnifiedWebService.REQUEST_FAILED.AccountName", RefusalKind::AccountForbidden),
            ("UnifiedWebService.REQUEST_FAILED.AccountNotFound", RefusalKind::AccountNotFound),
            ("DeviceService.REQUEST_FAILED.AccountNotFound", RefusalKind::AccountNotFound),
            ("REQUEST_FAILED.AccountNotFound", RefusalKind::AccountNotFound),
            ("UnifiedWebService.REQUEST_FAILED.NoAccounts", RefusalKind::AccountForbidden),
            ("UnifiedWebService.REQUEST_FAILED.MultipleAccounts", RefusalKind::InvalidInput),
            ("UnifiedWebService.INPUT_INVALID.Device.Kind.Invalid", RefusalKind::InvalidInput),
            ("UnifiedWebService.INPUT_INVALID.Device.Identifier.Invalid", RefusalKind::InvalidInput),
            ("UnifiedWebService.REQUEST_FAILED.DeviceNotFound", RefusalKind::DeviceNotFound),
            ("UnifiedWebService.INPUT_INVALID.MaxRequestsExceeded", RefusalKind::InvalidInput),
            ("UnifiedWebService.INPUT_INVALID.DeviceState.Invalid", RefusalKind::DeviceState),
            ("UnifiedWebService.REQUEST_FAILED.DeviceAlreadyActive", RefusalKind::DeviceState),
            ("UnifiedWebService.REQUEST_FAILED._servicePlan_.NotFound", RefusalKind::PlanNotFound),
            ("UnifiedWebService.REQUEST_FAILED.M2M Global 5GB.NotFound", RefusalKind::PlanNotFound),
            ("UnifiedWebService.REQUEST_FAILED.ServicePlanNotFound", RefusalKind::PlanNotFound),
            ("UnifiedWebService.REQUEST_FAILED.Request.NotFound", RefusalKind::Other),
            ("UnifiedWebService.REQUEST_FAILED.DefaultIpPoolNotDefined", RefusalKind::Other),
            ("UnifiedWebService.REQUEST_CANCELLED.CreditDenied", RefusalKind::Other),
            ("400", RefusalKind::InvalidInput),
            ("403", RefusalKind::Other),
            ("INVALID_PARAMETER", RefusalKind::InvalidInput),
            ("INTERNAL_ERROR", RefusalKind::Other),
        ];
        for (text, kind) in cases {
            assert_eq!(code(text).refusal(400).kind, kind, "{text}");
        }
    }

    #[test]
    fn a_code_is_shown_clean_and_short() {
        assert_eq!(code("A.REQUEST_FAILED.<b>x y'").refusal(400).code, "A.REQUEST_FAILED.bxy");
        assert_eq!(code(&"x".repeat(500)).refusal(400).code.len(), MAX_CODE_CHARS);
    }

    #[test]
    fn a_code_shows_no_identity_and_no_token() {
        let cases = [
            ("S.REQUEST_FAILED.89148000004292933820.NotFound", "S.REQUEST_FAILED._.NotFound"),
            ("S.REQUEST_FAILED.M2M Global 5GB.NotFound", "S.REQUEST_FAILED.M2MGlobal5GB.NotFound"),
            ("no device 5551234567", "nodevice_"),
            ("token 8f14e45f-ceea-467f-a14b-1f3cdd1d9a20 is over", "token_isover"),
            ("0af7651916cd43dd8448eb211c80319c", "_"),
            ("900901", "900901"),
        ];
        for (text, shown) in cases {
            assert_eq!(code(text).refusal(400).code, shown, "{text}");
        }
    }

    #[test]
    fn unknown_requests() {
        let unknown = |text, status| says_unknown_request(&code(text).refusal(status));
        assert!(unknown("UnifiedWebService.INPUT_INVALID.RequestId.Invalid", 400));
        assert!(unknown("UnifiedWebService.REQUEST_FAILED.RequestNotFound", 400));
        assert!(unknown("404", 404));
        assert!(!unknown("400", 400));
        assert!(!unknown("UnifiedWebService.REQUEST_FAILED.AccountNotFound", 404));
        assert!(!unknown("UnifiedWebService.INPUT_INVALID.Request.InvalidCharacter", 400));
        let wrong_path = Code::read(br#"{"fault":{"code":900906}}"#).unwrap();
        assert!(!says_unknown_request(&wrong_path.refusal(404)));
    }
}
