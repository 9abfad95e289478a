//! The table of ThingSpace's codes, which `docs/errors.md` shows.
//!
//! The first row that fits a code counts, and the last row fits every code. A refusal counts only
//! with some HTTP statuses. With a 5xx or a 408 the outcome is unknown (see
//! [`judge`](crate::thingspace::http::verdict::judge)).

use self::CodeClass::{BearerRefused, Refused, SessionRefused, Throttled, Unknown};
use crate::thingspace::RefusalKind::{
    self, AccountForbidden, AccountNotFound, DeviceNotFound, DeviceState, InvalidInput,
    NotForwarded, Other, PlanNotFound, RequestNotFound,
};

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) codes: CodePattern,
    /// The only HTTP status with which the row fits. `None`: any.
    pub(crate) http: Option<u16>,
    pub(crate) class: CodeClass,
    /// The meaning for people.
    pub(crate) meaning: &'static str,
}

#[derive(Debug)]
pub(crate) enum CodePattern {
    /// Codes without the service's name, in any case. `*` stands for anything, `#` for a digit.
    Named(&'static [&'static str]),
    /// Numbers of the API manager, from first to last.
    ApiManager(u32, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodeClass {
    /// Refused before execution because of the session token.
    SessionRefused,
    /// Refused before execution because of the bearer token.
    BearerRefused,
    /// Refused before execution because of too many calls.
    Throttled,
    /// Refused before execution, and repeating does not help.
    Refused(RefusalKind),
    /// The call may have been executed.
    Unknown,
}

pub(crate) static ROWS: &[Row] = &[
    // Tokens. Sources name HTTP 400, 401 and 403 for a refused session, so only the code counts.
    named(
        &["INPUT_INVALID.SessionToken.*", "REQUEST_FAILED.SessionToken.*", "SessionToken.*"],
        SessionRefused,
        "the session has ended, was replaced or is unknown",
    ),
    manager(
        900_900,
        900_905,
        BearerRefused,
        "the bearer token is wrong, missing or expired; ThingSpace does not say which",
    ),
    Row {
        http: Some(401),
        ..manager(900_906, 900_909, BearerRefused, "the bearer token is not valid for this API")
    },
    // Other codes of the API manager, for calls that it does not pass on.
    manager(900_800, 900_807, Throttled, "too many calls"),
    manager(700_700, 700_700, Refused(NotForwarded), "the API is blocked"),
    manager(
        900_000,
        900_999,
        Refused(NotForwarded),
        "the API manager did not pass the call on: no such resource, blocked, forbidden or not \
         subscribed",
    ),
    // The API manager's main sequence, for calls that fit no API, says 404. So does the fault in
    // XML that Verizon documents with HTTP 403 for "wrong authentication". The call was not passed
    // on. WSO2's documents on error handling list the sequences.
    manager(
        400,
        499,
        Refused(NotForwarded),
        "the API manager does not know the address or this kind of authentication; check \
         thingspace.base_url and the key",
    ),
    // Transport errors of Synapse: the call was passed on, or may have been.
    manager(101_000, 303_999, Unknown, "the API manager lost its connection to ThingSpace"),
    // The order may have been executed, now or before. The patterns do not fit the codes for an
    // identifier that an order contains twice.
    named(
        &[
            "*DuplicateRequest*",
            "*Duplicate_Request*",
            "*Request.Duplicate*",
            "*Timeout*",
            "*Timed_Out*",
            "*TimedOut*",
        ],
        Unknown,
        "the same call was sent before, or ThingSpace took too long: it may have been executed",
    ),
    // Requests. The code of an unknown request is not documented.
    refused(
        &["*RequestId*", "*Request.NotFound", "*RequestNotFound"],
        RequestNotFound,
        "no such request",
    ),
    // Accounts.
    refused(&["*.AccountNotFound", "*.Account.NotFound"], AccountNotFound, "no such account"),
    refused(
        &["REQUEST_FAILED.AccountName", "REQUEST_FAILED.NoAccounts"],
        AccountForbidden,
        "the gateway's user may not use the account, or has none",
    ),
    refused(
        &["*.MultipleAccounts", "INPUT_INVALID.Account.*"],
        InvalidInput,
        "the order must name an account",
    ),
    // Devices.
    refused(
        &["*.DeviceNotFound", "*.Device.NotFound"],
        DeviceNotFound,
        "a device of the order is unknown",
    ),
    refused(
        &["*.DeviceState.Invalid", "*.DeviceAlreadyActive"],
        DeviceState,
        "a device is in a state that does not allow this",
    ),
    refused(
        &["INPUT_INVALID.Device.Kind.Invalid", "INPUT_INVALID.Device.Identifier.Invalid"],
        InvalidInput,
        "an identifier is of an unknown kind or does not fit its kind",
    ),
    refused(
        &["INPUT_INVALID.MaxRequestsExceeded", "INPUT_INVALID.NumberofDevices"],
        InvalidInput,
        "too many devices in one order; see thingspace.max_devices_per_order",
    ),
    // Plans. The name of a plan precedes `.NotFound`, so other things that are not found come
    // first.
    refused(
        &[
            "REQUEST_FAILED.Account*.NotFound",
            "REQUEST_FAILED.Device*.NotFound",
            "REQUEST_FAILED.Request*.NotFound",
            "REQUEST_FAILED.User*.NotFound",
            "REQUEST_FAILED.CustomField*.NotFound",
            "REQUEST_FAILED.LeadId*.NotFound",
        ],
        Other,
        "something else was not found",
    ),
    refused(
        &["REQUEST_FAILED.*ServicePlan*NotFound", "REQUEST_FAILED.*.NotFound"],
        PlanNotFound,
        "no such service plan",
    ),
    // Other codes of ThingSpace itself.
    refused(
        &["INPUT_INVALID.Request.InvalidCharacter"],
        InvalidInput,
        "a character that ThingSpace does not accept",
    ),
    refused(
        &["*.RequestUndefined", "*DeserializationFailed"],
        Other,
        "ThingSpace cannot read the gateway's request: a defect of the gateway",
    ),
    refused(&["*.DefaultIpPoolNotDefined"], Other, "the account has no default IP pool"),
    refused(
        &["REQUEST_FAILED.UnexpectedError"],
        Other,
        "a part of the input is missing or invalid, or ThingSpace has a problem of its own",
    ),
    // The order may be a duplicate. These rows follow those of plans, because the name of a plan
    // may contain any of these words.
    named(
        &[
            "*InProgress*",
            "*In_Progress*",
            "*In Progress*",
            "REQUEST_FAILED.*Pending*",
            "REQUEST_FAILED.*Partial*",
            "REQUEST_FAILED.*Queued*",
            "REQUEST_FAILED.*Submitted*",
        ],
        Unknown,
        "the same call is in progress, or was executed in part",
    ),
    named(&["REQUEST_ONHOLD.*"], Unknown, "the request waits, for example for a credit approval"),
    refused(&["REQUEST_CANCELLED.*"], Other, "the request was cancelled"),
    refused(&["INPUT_INVALID.*"], InvalidInput, "the input is invalid"),
    refused(&["REQUEST_FAILED.*"], Other, "another refusal of ThingSpace"),
    // Codes without a class: the HTTP status again, or a word. The eSIM pages document only these.
    refused(&["400", "422", "INVALID_PARAMETER"], InvalidInput, "the input is invalid"),
    named(
        &["408", "5##", "INTERNAL_ERROR", "INTERNAL_SYSTEM_ERROR", "internal_server_error"],
        Unknown,
        "ThingSpace has a problem of its own, with any HTTP status",
    ),
    refused(
        &[
            "invalid_request",
            "invalid_client",
            "invalid_grant",
            "invalid_scope",
            "invalid_token",
            "unauthorized_client",
            "unsupported_grant_type",
        ],
        Other,
        "the authorization server refused the call",
    ),
    refused(&["*"], Other, "another refusal"),
];

const fn named(codes: &'static [&'static str], class: CodeClass, meaning: &'static str) -> Row {
    Row { codes: CodePattern::Named(codes), http: None, class, meaning }
}

const fn refused(codes: &'static [&'static str], kind: RefusalKind, why: &'static str) -> Row {
    named(codes, Refused(kind), why)
}

const fn manager(first: u32, last: u32, class: CodeClass, meaning: &'static str) -> Row {
    Row { codes: CodePattern::ApiManager(first, last), http: None, class, meaning }
}

/// Returns the row of a code. `name` is the code without the service and in lower case. `number` is
/// the code of the API manager.
pub(super) fn row(name: &str, number: Option<u32>, http: u16) -> &'static Row {
    let fits = |row: &&Row| {
        row.http.is_none_or(|only| only == http)
            && match row.codes {
                CodePattern::Named(names) => {
                    names.iter().any(|pattern| fits(&pattern.to_ascii_lowercase(), name))
                }
                CodePattern::ApiManager(first, last) => {
                    number.is_some_and(|number| (first..=last).contains(&number))
                }
            }
    };
    ROWS.iter().find(fits).expect("the last row fits every code")
}

fn fits(pattern: &str, name: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => name.is_empty(),
        Some('*') => {
            name.char_indices().any(|(at, _)| fits(rest.as_str(), &name[at..]))
                || fits(rest.as_str(), "")
        }
        Some(expected) => {
            let mut chars = name.chars();
            let same = chars
                .next()
                .is_some_and(|c| c == expected || (expected == '#' && c.is_ascii_digit()));
            same && fits(rest.as_str(), chars.as_str())
        }
    }
}
