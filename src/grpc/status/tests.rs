use std::{collections::BTreeMap, fs, path::Path};

use super::*;
use crate::{
    identity::{AccountName, RequestId},
    proto::esim::ErrorReason,
};

/// Reasons of the API that the gateway does not use yet.
const UNUSED: [&str; 2] = ["CALLER_UNAUTHENTICATED", "CALLER_NOT_ALLOWED"];

/// Every error of the domain. [`is_listed`] does not compile until a new one is added here.
fn errors() -> Vec<Error> {
    let refused = |kind| Error::Refused(Refusal { kind, code: "400".to_owned(), status: 400 });
    let order_id = "order".to_owned();
    let unavailable = || StoreError::Unavailable(String::new());
    vec![
        Error::AccountNotConfigured(AccountName::parse("0000123456-00001").unwrap()),
        Error::IdempotencyKeyReused,
        Error::OrderInProgress,
        Error::OrderOutcomeUnknown {
            order_id,
            sent_time: jiff::Timestamp::UNIX_EPOCH,
            request_id: None,
        },
        Error::RequestNotFound,
        Error::InvalidToken(TokenKind::Resume),
        Error::InvalidToken(TokenKind::Page),
        Error::StillPending,
        refused(RefusalKind::InvalidInput),
        refused(RefusalKind::AccountNotFound),
        refused(RefusalKind::AccountForbidden),
        refused(RefusalKind::PlanNotFound),
        refused(RefusalKind::DeviceNotFound),
        refused(RefusalKind::DeviceState),
        refused(RefusalKind::RequestNotFound),
        refused(RefusalKind::NotForwarded),
        refused(RefusalKind::Other),
        Error::CredentialsRejected { name: "main".to_owned() },
        Error::CredentialsUnreadable { name: "main".to_owned() },
        Error::LoginBlocked { name: "main".to_owned() },
        Error::Throttled { retry_after: None },
        Error::UpstreamUnavailable { reason: String::new(), retry_after: None },
        Error::Overloaded { limit: "limits.open_devices" },
        Error::Busy { retry_after: SOON },
        Error::Store(unavailable()),
        Error::Store(StoreError::Full("0 bytes are free".to_owned())),
        Error::Store(StoreError::Corrupt("a log".to_owned())),
        Error::SlowReader,
        Error::Draining,
        Error::Deadline(Effect::None),
        Error::Deadline(Effect::NothingSent),
        Error::Deadline(Effect::Unknown),
        Error::Internal("a defect".to_owned()),
    ]
}

fn is_listed(error: &Error) {
    match error {
        Error::AccountNotConfigured(_)
        | Error::IdempotencyKeyReused
        | Error::OrderInProgress
        | Error::OrderOutcomeUnknown { .. }
        | Error::RequestNotFound
        | Error::InvalidToken(TokenKind::Resume | TokenKind::Page)
        | Error::StillPending
        | Error::Refused(_)
        | Error::CredentialsRejected { .. }
        | Error::CredentialsUnreadable { .. }
        | Error::LoginBlocked { .. }
        | Error::Throttled { .. }
        | Error::UpstreamUnavailable { .. }
        | Error::Overloaded { .. }
        | Error::Busy { .. }
        | Error::Store(_)
        | Error::SlowReader
        | Error::Draining
        | Error::Deadline(Effect::None | Effect::NothingSent | Effect::Unknown)
        | Error::Internal(_) => {}
    }
}

/// Every status that a call can end with, by reason. One reason always has the same code.
fn statuses() -> BTreeMap<String, Status> {
    let mut by_reason: BTreeMap<String, Status> = BTreeMap::new();
    let mut add = |status: Status| {
        let info = status.get_details_error_info().expect("every error has an ErrorInfo");
        assert_eq!(info.domain, DOMAIN);
        let before = by_reason.insert(info.reason.clone(), status.clone());
        assert!(before.is_none_or(|before| before.code() == status.code()), "{}", info.reason);
    };
    for error in errors() {
        is_listed(&error);
        add(of(&error));
        add(of_watch(&error, Some("token".to_owned())));
    }
    add(stream_age(None));
    add(invalid(Violations(vec![FieldViolation::new("field", "is wrong")])));
    for code in [Code::Unimplemented, Code::OutOfRange, Code::Internal] {
        add(of_library(&Status::new(code, "")));
    }
    by_reason
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The name of a code in the proto file and on the page.
fn name(code: Code) -> String {
    let upper = |letter: char| letter.is_ascii_uppercase().then_some('_');
    let name = format!("{code:?}");
    let name = name
        .chars()
        .flat_map(|letter| upper(letter).into_iter().chain([letter.to_ascii_uppercase()]));
    name.skip(1).collect()
}

#[test]
fn the_proto_and_the_page_list_every_reason_with_its_code() {
    let (proto, page) = (read("proto/thingspace/esim/v1/esim.proto"), read("docs/errors.md"));
    let statuses = statuses();
    let in_proto: Vec<_> = (1..)
        .map_while(|number| ErrorReason::try_from(number).ok())
        .map(|reason| reason.as_str_name().trim_start_matches("ERROR_REASON_"))
        .collect();
    for reason in statuses.keys() {
        assert!(in_proto.contains(&reason.as_str()), "{reason} is not in the proto file");
        assert!(!UNUSED.contains(&reason.as_str()), "{reason} is used by now");
    }
    for reason in in_proto {
        let (before, _) = proto.split_once(&format!("  ERROR_REASON_{reason} = ")).unwrap();
        let comment = before.rsplit_once(";\n").unwrap().1.trim_start();
        let line = page.lines().find(|line| line.starts_with(&format!("| {reason} | ")));
        let line = line.unwrap_or_else(|| panic!("{reason} is not in docs/errors.md"));
        let Some(status) = statuses.get(reason) else {
            assert!(UNUSED.contains(&reason), "{reason} is not used");
            continue;
        };
        let code = name(status.code());
        assert!(comment.starts_with(&format!("// {code}. ")), "{reason}: {comment}");
        assert!(line.starts_with(&format!("| {reason} | {code} | ")), "{line}");
    }
}

#[test]
fn errors_that_ask_for_a_retry_say_when() {
    let statuses = statuses();
    let with = |code: Code| -> Vec<&str> {
        statuses
            .iter()
            .filter(|(_, s)| s.code() == code)
            .map(|(reason, _)| reason.as_str())
            .collect()
    };
    // See the list in the module's documentation.
    assert_eq!(
        with(Code::Unavailable),
        [
            "DRAINING",
            "ORDER_IN_PROGRESS",
            "SLOW_READER",
            "STORE_UNAVAILABLE",
            "STREAM_AGE",
            "UPSTREAM_UNAVAILABLE"
        ]
    );
    assert_eq!(with(Code::ResourceExhausted), ["OVERLOADED", "STORE_FULL", "UPSTREAM_THROTTLED"]);
    for (reason, status) in &statuses {
        let again = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
        assert_eq!(status.get_details_retry_info().is_some(), again, "{reason}");
    }
}

#[test]
fn an_error_that_a_retry_cannot_fix_is_not_unavailable() {
    let corrupt = Error::Store(StoreError::Corrupt("a log".to_owned()));
    for status in [of(&corrupt), of_watch(&corrupt, Some("token".to_owned()))] {
        assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
    }
}

#[test]
fn an_unknown_outcome_asks_for_no_retry() {
    let request = RequestId::parse("r").unwrap();
    let unknown = Error::OrderOutcomeUnknown {
        order_id: "order".to_owned(),
        sent_time: jiff::Timestamp::UNIX_EPOCH,
        request_id: Some(request),
    };
    let status = of(&unknown);
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.get_details_retry_info().is_none());
    let said = status.get_details_error_info().unwrap().metadata;
    assert_eq!(said.keys().len(), 3, "{said:?}");
}
