//! Counts orders by what ThingSpace did with them.

use opentelemetry::KeyValue;

use super::sending::SendResult;
use crate::{
    identity::AccountName,
    telemetry::{attribute, metrics, names},
};

const ACCEPTED: &str = "accepted";
const REFUSED: &str = "refused";
const NOT_SENT: &str = "not_sent";
const UNKNOWN: &str = "unknown";

/// Makes the counts of an account visible, so that its first order is an increase.
pub(super) fn start(account: &AccountName) {
    for outcome in [ACCEPTED, REFUSED, NOT_SENT, UNKNOWN] {
        metrics().orders.start(&attributes(account, outcome));
    }
}

pub(super) fn count(account: &AccountName, result: &SendResult) {
    let outcome = match result {
        SendResult::AcceptedAs(_) => ACCEPTED,
        SendResult::Refused(_) => REFUSED,
        SendResult::NotSent => NOT_SENT,
        SendResult::Unknown => UNKNOWN,
    };
    metrics().orders.add(&attributes(account, outcome));
}

fn attributes(account: &AccountName, outcome: &'static str) -> [KeyValue; 2] {
    [attribute(names::ACCOUNT, account.to_string()), attribute(names::OUTCOME, outcome)]
}
