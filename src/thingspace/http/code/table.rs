//! What ThingSpace's codes mean: the one table, which `docs/errors.md` shows.
//!
//! The first row that fits a code holds, and the last row fits every code. A row says what a code
//! means with an HTTP status that lets it mean something: a 5xx or a 408 whose code is a refusal in
//! the table is unclear all the same (see [`judge`](crate::thingspace::http::verdict::judge)).

use crate::thingspace::RefusalKind::{
    self, AccountForbidden, AccountNotFound, DeviceNotFound, DeviceState, InvalidInput, Other,
    PlanNotFound, RequestNotFound, TurnedAway,
};

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) codes: Codes,
    /// Only with this HTTP status; `None`: with any.
    pub(crate) http: Option<u16>,
    pub(crate) means: Means,
    /// For people.
    pub(crate) meaning: &'static str,
}

/// Which codes.
#[derive(Debug)]
pub(crate) enum Codes {
    /// What follows the name of a service, in any case. `*` stands for anything, `#` for a digit.
    Named(&'static [&'static str]),
    /// Numbers of the API manager, from first to last.
    ApiManager(u32, u32),
}

/// What follows from a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    /// Refused before execution: the session is no longer good.
    SessionRefused,
    /// Refused before execution: the bearer is no longer good.
    BearerRefused,
    /// Refused before execution: too many calls.
    Throttled,
    /// Refused before execution, for good.
    Refused(RefusalKind),
    /// The call may have been carried out.
    Unclear,
}

pub(crate) static ROWS: &[Row] = &[
    // The tokens. A session is refused with HTTP 400, 401 or 403, by different accounts; its code
    // counts, not the status.
    named(
        &["INPUT_INVALID.SessionToken.*", "REQUEST_FAILED.SessionToken.*", "SessionToken.*"],
        Means::SessionRefused,
        "the session is over, replaced or unknown",
    ),
    manager(
        900_900,
        900_905,
        Means::BearerRefused,
        "the bearer is wrong, missing or over, which cannot be told apart",
    ),
    Row {
        http: Some(401),
        ..manager(
            900_906,
            900_909,
            Means::BearerRefused,
            "the bearer does not open this API, or not now",
        )
    },
    // The API manager's other words. It answers in ThingSpace's stead where it does not pass a call
    // on.
    manager(900_800, 900_807, Means::Throttled, "too many calls"),
    manager(700_700, 700_700, TURNED_AWAY, "the API is blocked"),
    manager(
        900_000,
        900_999,
        TURNED_AWAY,
        "the API manager does not let the call pass: no such resource, blocked, forbidden or not subscribed",
    ),
    // Its main sequence, for calls that fit no API, says 404, and so does its fault in XML that
    // Verizon documents with HTTP 403 for "wrong authentication". Either way nothing was passed on.
    // WSO2's documents on error handling list the sequences.
    manager(
        400,
        499,
        TURNED_AWAY,
        "the API manager knows no such address, or not this kind of authentication; check thingspace.base_url and the key",
    ),
    // Synapse's transport errors: the call was passed on, or was about to be.
    manager(101_000, 303_999, Means::Unclear, "the API manager lost its connection to ThingSpace"),
    // What was asked for may have been carried out, now or before. An identifier that the order has
    // twice is another matter.
    named(
        &[
            "*DuplicateRequest*",
            "*Duplicate_Request*",
            "*Request.Duplicate*",
            "*Timeout*",
            "*Timed_Out*",
            "*TimedOut*",
        ],
        Means::Unclear,
        "the same was asked for before, or ThingSpace took too long: it may have been carried out",
    ),
    // Requests. No document says how an unknown one is refused.
    named(
        &["*RequestId*", "*Request.NotFound", "*RequestNotFound"],
        Means::Refused(RequestNotFound),
        "no such request",
    ),
    // Accounts.
    named(
        &["*.AccountNotFound", "*.Account.NotFound"],
        Means::Refused(AccountNotFound),
        "no such account",
    ),
    named(
        &["REQUEST_FAILED.AccountName", "REQUEST_FAILED.NoAccounts"],
        Means::Refused(AccountForbidden),
        "the gateway's user has no right to the account, or to any",
    ),
    named(
        &["*.MultipleAccounts", "INPUT_INVALID.Account.*"],
        Means::Refused(InvalidInput),
        "an account has to be named",
    ),
    // Devices.
    named(
        &["*.DeviceNotFound", "*.Device.NotFound"],
        Means::Refused(DeviceNotFound),
        "a device of the order is unknown",
    ),
    named(
        &["*.DeviceState.Invalid", "*.DeviceAlreadyActive"],
        Means::Refused(DeviceState),
        "a device is in a state that does not allow this",
    ),
    named(
        &["INPUT_INVALID.Device.Kind.Invalid", "INPUT_INVALID.Device.Identifier.Invalid"],
        Means::Refused(InvalidInput),
        "an identifier is of an unknown kind, or does not fit its kind",
    ),
    named(
        &["INPUT_INVALID.MaxRequestsExceeded", "INPUT_INVALID.NumberofDevices"],
        Means::Refused(InvalidInput),
        "too many devices in one order; see thingspace.max_devices_per_order",
    ),
    // Plans. The plan's own name stands before `.NotFound`, so what else is not found comes first.
    named(
        &[
            "REQUEST_FAILED.Account*.NotFound",
            "REQUEST_FAILED.Device*.NotFound",
            "REQUEST_FAILED.Request*.NotFound",
            "REQUEST_FAILED.User*.NotFound",
            "REQUEST_FAILED.CustomField*.NotFound",
            "REQUEST_FAILED.LeadId*.NotFound",
        ],
        Means::Refused(Other),
        "something else was not found",
    ),
    named(
        &["REQUEST_FAILED.*ServicePlan*NotFound", "REQUEST_FAILED.*.NotFound"],
        Means::Refused(PlanNotFound),
        "no such service plan",
    ),
    // The rest of ThingSpace proper.
    named(
        &["INPUT_INVALID.Request.InvalidCharacter"],
        Means::Refused(InvalidInput),
        "a character that ThingSpace does not take",
    ),
    named(
        &["*.RequestUndefined", "*DeserializationFailed"],
        Means::Refused(Other),
        "ThingSpace cannot read what the gateway wrote: a defect of the gateway",
    ),
    named(
        &["*.DefaultIpPoolNotDefined"],
        Means::Refused(Other),
        "the account has no default IP pool",
    ),
    named(
        &["REQUEST_FAILED.UnexpectedError"],
        Means::Refused(Other),
        "a part of the input is missing or invalid, or ThingSpace has a problem of its own",
    ),
    // Neighbours of a duplicate request. They follow what was not found: a plan's name may have any
    // of these words in it.
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
        Means::Unclear,
        "the same is being carried out, or a part of it was: it may have been carried out",
    ),
    named(
        &["REQUEST_ONHOLD.*"],
        Means::Unclear,
        "the request waits, for a credit approval for example",
    ),
    named(&["REQUEST_CANCELLED.*"], Means::Refused(Other), "the request was cancelled"),
    named(&["INPUT_INVALID.*"], Means::Refused(InvalidInput), "the input is invalid"),
    named(&["REQUEST_FAILED.*"], Means::Refused(Other), "another refusal of ThingSpace"),
    // Without a class: the HTTP status once more, or a word. The eSIM pages document nothing finer.
    named(
        &["400", "422", "INVALID_PARAMETER"],
        Means::Refused(InvalidInput),
        "the input is invalid",
    ),
    named(
        &["408", "5##", "INTERNAL_ERROR", "INTERNAL_SYSTEM_ERROR", "internal_server_error"],
        Means::Unclear,
        "ThingSpace has a problem of its own, whatever the HTTP status says",
    ),
    named(
        &[
            "invalid_request",
            "invalid_client",
            "invalid_grant",
            "invalid_scope",
            "invalid_token",
            "unauthorized_client",
            "unsupported_grant_type",
        ],
        Means::Refused(Other),
        "the authorization server refuses",
    ),
    named(&["*"], Means::Refused(Other), "another refusal"),
];

const TURNED_AWAY: Means = Means::Refused(TurnedAway);

const fn named(codes: &'static [&'static str], means: Means, meaning: &'static str) -> Row {
    Row { codes: Codes::Named(codes), http: None, means, meaning }
}

const fn manager(first: u32, last: u32, means: Means, meaning: &'static str) -> Row {
    Row { codes: Codes::ApiManager(first, last), http: None, means, meaning }
}

/// The row of a code: `name` without its service and in lower case, `number` if it is one of the
/// API manager's.
pub(super) fn row(name: &str, number: Option<u32>, http: u16) -> &'static Row {
    let fits = |row: &&Row| {
        row.http.is_none_or(|only| only == http)
            && match row.codes {
                Codes::Named(names) => {
                    names.iter().any(|pattern| fits(&pattern.to_ascii_lowercase(), name))
                }
                Codes::ApiManager(first, last) => {
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
            let mut given = name.chars();
            let same = given
                .next()
                .is_some_and(|c| c == expected || (expected == '#' && c.is_ascii_digit()));
            same && fits(rest.as_str(), given.as_str())
        }
    }
}
