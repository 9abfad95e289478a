//! The names of everything that is measured and traced: each metric with its kind, unit, attributes
//! and meaning, and the keys and fixed values of attributes.
//!
//! `docs/metrics.md` has the same table, and a test compares the two. Names of RPCs, HTTP and the
//! process follow the OpenTelemetry semantic conventions 1.44 (those of RPC are a release
//! candidate). Our own metrics begin with `thingspace.gateway.`, and their attributes have the
//! names of the fields in the log.
//!
//! No attribute has the id of a request or a device, or a text that a caller chose.

use opentelemetry::KeyValue;

/// What is measured.
#[derive(Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// By UCUM. Empty: the value is 0 or 1.
    pub(crate) unit: &'static str,
    /// The keys that its values may have.
    pub(crate) attributes: &'static [&'static str],
    /// A sentence without a full stop.
    pub(crate) meaning: &'static str,
}

impl Metric {
    /// Checks, in debug builds, that all keys of a value are in the table.
    pub(super) fn check(&self, attributes: &[KeyValue]) {
        for attribute in attributes {
            let key = attribute.key.as_str();
            debug_assert!(self.attributes.contains(&key), "{} has no {key}", self.name);
        }
    }
}

/// How a metric is aggregated.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Counts since the start of the process.
    Counter,
    /// The value now.
    Gauge,
    /// The value now, of which the sum over all replicas makes sense.
    UpDownCounter,
    /// Counts values up to each of these bounds.
    Histogram(&'static [f64]),
}

/// The bounds of calls, by the semantic conventions, in seconds.
const CALLS: Kind = Kind::Histogram(&[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1., 2.5, 5., 7.5, 10.,
]);

/// The bounds of operations of the store, in seconds.
const OPERATIONS: Kind = Kind::Histogram(&[
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10.,
]);

/// The bounds of waits and delays, in seconds.
const DELAYS: Kind = Kind::Histogram(&[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30., 60., 300., 1_800.,
]);

/// The bounds of the time that ThingSpace needs for a request, in seconds.
const REQUESTS: Kind = Kind::Histogram(&[
    1., 5., 15., 30., 60., 120., 300., 600., 1_800., 3_600., 14_400., 86_400., 259_200.,
]);

pub(super) const SERVICE_NAME: &str = "service.name";
pub(super) const SERVICE_VERSION: &str = "service.version";
pub(crate) const RPC_SYSTEM_NAME: &str = "rpc.system.name";
pub(crate) const RPC_METHOD: &str = "rpc.method";
pub(crate) const RPC_RESPONSE_STATUS_CODE: &str = "rpc.response.status_code";
pub(crate) const ERROR_TYPE: &str = "error.type";
pub(crate) const HTTP_REQUEST_METHOD: &str = "http.request.method";
pub(crate) const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
pub(crate) const SERVER_ADDRESS: &str = "server.address";
pub(crate) const SERVER_PORT: &str = "server.port";
pub(crate) const URL_TEMPLATE: &str = "url.template";
pub(crate) const CPU_MODE: &str = "cpu.mode";

pub(crate) const ACCOUNT: &str = "account";
pub(crate) const AGE: &str = "age";
pub(crate) const BY: &str = "by";
pub(crate) const CALLER: &str = "caller";
pub(crate) const CLASS: &str = "class";
pub(crate) const CONNECTION: &str = "connection";
pub(crate) const CREDENTIALS: &str = "credentials";
pub(crate) const FILES: &str = "files";
pub(crate) const HOST: &str = "host";
pub(crate) const LIMIT: &str = "limit";
pub(crate) const LISTENER: &str = "listener";
pub(crate) const OPERATION: &str = "operation";
pub(crate) const OUTCOME: &str = "outcome";
pub(crate) const REASON: &str = "reason";
pub(crate) const START: &str = "start";
pub(crate) const STATE: &str = "state";
pub(crate) const TOKEN: &str = "token";
pub(crate) const VERSION: &str = "version";

/// Replaces a value that is not one of the known ones.
pub(crate) const OTHER: &str = "_OTHER";

/// Defines a constant for each metric, and for the test the list of all.
macro_rules! metrics {
    ($($id:ident: $kind:expr, $name:literal, $unit:literal, [$($attribute:ident),*],
       $meaning:literal;)+) => {
        $(pub(crate) const $id: Metric = Metric {
            name: $name,
            kind: $kind,
            unit: $unit,
            attributes: &[$($attribute),*],
            meaning: $meaning,
        };)+

        #[cfg(test)]
        const ALL: &[Metric] = &[$($id),+];
    };
}

metrics! {
    // Calls of the API
    RPC_SERVER_CALL_DURATION: CALLS, "rpc.server.call.duration", "s",
        [RPC_SYSTEM_NAME, RPC_METHOD, RPC_RESPONSE_STATUS_CODE, ERROR_TYPE],
        "Time from the request to the end of the last message. A stream counts when it ends, and a \
         call that the caller left is CANCELLED";
    CALLER_CALLS: Kind::Counter, "thingspace.gateway.calls", "{call}",
        [CALLER, RPC_METHOD, RPC_RESPONSE_STATUS_CODE],
        "Calls of authenticated callers that ended. Callers beyond the first 200 are _OTHER";
    CALL_FAILURES: Kind::Counter, "thingspace.gateway.call.failures", "{call}",
        [RPC_METHOD, REASON],
        "Calls that ended with an error, by the reason in their ErrorInfo";
    CALLS_DENIED: Kind::Counter, "thingspace.gateway.calls.denied", "{call}", [REASON],
        "Calls without valid credentials, or that the policy does not allow";
    LIMITS_REACHED: Kind::Counter, "thingspace.gateway.limits.reached", "{call}", [LIMIT],
        "Calls that were refused because of a limit";
    SLOW_READERS: Kind::Counter, "thingspace.gateway.slow_readers", "{call}", [],
        "Responses that were ended because the caller did not read them";

    // Watches
    WATCHES_OPEN: Kind::UpDownCounter, "thingspace.gateway.watches.open", "{watch}", [],
        "Open watches";
    WATCHES_BEGUN: Kind::Counter, "thingspace.gateway.watches.begun", "{watch}", [START],
        "Watches that began, with a snapshot or by resuming an earlier watch";
    WATCHES_ENDED: Kind::Counter, "thingspace.gateway.watches.ended", "{watch}", [REASON],
        "Watches that ended";
    WATCH_DELAY: DELAYS, "thingspace.gateway.watch.delay", "s", [],
        "Time from the moment at which the store stored a change, such as a callback, to the \
         message of an open watch. Both clocks matter if the store is NATS";

    // Orders and requests
    ORDERS: Kind::Counter, "thingspace.gateway.orders", "{order}", [ACCOUNT, OUTCOME],
        "Orders that this replica tried to place, by what ThingSpace did with them";
    ORDERS_UNKNOWN: Kind::Gauge, "thingspace.gateway.orders.unknown", "{order}", [],
        "Unknown orders, which an operator or evidence has to settle. Without a value while the \
         store cannot be read";
    REQUESTS_OPEN: Kind::Gauge, "thingspace.gateway.requests.open", "{request}", [ACCOUNT, AGE],
        "Open requests, by the time since they were accepted";
    DEVICES_OPEN: Kind::Gauge, "thingspace.gateway.devices.open", "{device}", [ACCOUNT, AGE],
        "Devices of the open requests, also those with a result";
    REQUESTS_OLDEST: Kind::Gauge, "thingspace.gateway.requests.oldest", "s", [ACCOUNT],
        "Time since the oldest open request was accepted";
    REQUEST_DURATION: REQUESTS, "thingspace.gateway.request.duration", "s", [BY, STATE],
        "Time from a request's first event to its last result, and what brought that result. Each \
         replica counts every request";
    LOGS_UNREADABLE: Kind::Gauge, "thingspace.gateway.logs.unreadable", "{log}", [],
        "Damaged logs of the store, which are skipped";

    // ThingSpace
    HTTP_CLIENT_REQUEST_DURATION: CALLS, "http.client.request.duration", "s",
        [HTTP_REQUEST_METHOD, SERVER_ADDRESS, SERVER_PORT, URL_TEMPLATE,
         HTTP_RESPONSE_STATUS_CODE, ERROR_TYPE],
        "Time of one HTTP request to ThingSpace, body included";
    BREAKER_OPEN: Kind::Gauge, "thingspace.gateway.breaker.open", "", [HOST],
        "Whether calls to a host of ThingSpace fail at once, because several in a row failed";
    BREAKER_OPENED: Kind::Counter, "thingspace.gateway.breaker.opened", "{time}", [HOST],
        "How often the breaker of a host opened after it was closed";
    PERMIT_WAIT: DELAYS, "thingspace.gateway.permit.wait", "s", [CREDENTIALS, CLASS, OUTCOME],
        "Time that a call to ThingSpace waited for its permit";
    POLLS: Kind::Counter, "thingspace.gateway.polls", "{poll}", [OUTCOME],
        "Polls of this replica";
    POLL_BACKLOG: Kind::Gauge, "thingspace.gateway.poll.backlog", "{request}", [],
        "Requests whose poll is due and has not begun";
    POLL_DELAY: DELAYS, "thingspace.gateway.poll.delay", "s", [],
        "Time from the moment at which a poll was due to its begin";

    // Credentials for ThingSpace
    TOKEN_AGE: Kind::Gauge, "thingspace.gateway.token.age", "s", [CREDENTIALS, TOKEN],
        "Time since this replica got the token in use, from ThingSpace or another replica. Without \
         a value while there is none";
    TOKEN_REMAINING: Kind::Gauge, "thingspace.gateway.token.remaining", "s", [CREDENTIALS, TOKEN],
        "Time until the token in use expires, if ThingSpace said so: bearer tokens that this \
         replica requested";
    RENEWALS: Kind::Counter, "thingspace.gateway.renewals", "{renewal}",
        [CREDENTIALS, TOKEN, OUTCOME],
        "Renewals that ended: token requests and logins, and those that the guard did not allow";
    LOGIN_REJECTIONS_LEFT: Kind::Gauge, "thingspace.gateway.login.rejections_left", "{login}",
        [CREDENTIALS],
        "Logins with the password in the file that ThingSpace may still reject before the guard \
         stops logins: 2, or 1 with a new store, 0 while logins are stopped. Without a value until \
         the store was read";
    LOGIN_STATE: Kind::Gauge, "thingspace.gateway.login.state", "", [CREDENTIALS, STATE],
        "1 for the state of the logins, 0 for the other states";

    // Callbacks
    CALLBACKS: Kind::Counter, "thingspace.gateway.callbacks", "{request}", [ACCOUNT, OUTCOME],
        "Requests to the callbacks' listener. Without account if the path named none";
    CALLBACK_DURATION: OPERATIONS, "thingspace.gateway.callback.duration", "s", [OUTCOME],
        "Time from the header of a request to the callbacks' listener to its answer";
    CALLBACK_SILENCE: Kind::Gauge, "thingspace.gateway.callback.silence", "s", [ACCOUNT],
        "Time since this replica stored the last callback of an account, or since its start";
    CALLBACKS_STRAY: Kind::Counter, "thingspace.gateway.callbacks.stray", "{callback}", [ACCOUNT],
        "Callbacks for requests that this gateway does not know";
    QUARANTINE_EVICTED: Kind::Counter, "thingspace.gateway.quarantine.evicted", "{callback}", [],
        "Callbacks that were removed from the quarantine to make room for others";
    REGISTRATION_STATE: Kind::Gauge, "thingspace.gateway.registration.state", "",
        [ACCOUNT, STATE],
        "1 for the state of an account's registration, 0 for the other states";

    // The store
    STORE_DURATION: OPERATIONS, "thingspace.gateway.store.duration", "s", [OPERATION, OUTCOME],
        "Time of one operation of the store";
    STORE_SIZE: Kind::Gauge, "thingspace.gateway.store.size", "By", [],
        "Size of the store's file, or of the stream of events";
    STORE_ROOM: Kind::Gauge, "thingspace.gateway.store.room", "By", [],
        "Free space on the disk of the store's file, or of the stream of events";
    STORE_USABLE: Kind::Gauge, "thingspace.gateway.store.usable", "", [],
        "Whether the store can be used, and its last write succeeded";
    STORE_SHORT: Kind::Gauge, "thingspace.gateway.store.short", "", [],
        "Whether new orders are refused because the store is full. The rest of its room is kept \
         for known orders";
    STORE_LOST: Kind::Gauge, "thingspace.gateway.store.lost", "", [],
        "Whether the store lost something, and no operator has accepted that";
    FOLLOWER_LAG: Kind::Gauge, "thingspace.gateway.follower.lag", "{event}", [],
        "Events in the store that this replica has not read yet";
    NATS_CONNECTED: Kind::Gauge, "thingspace.gateway.nats.connected", "", [CONNECTION],
        "Whether a connection to NATS is up";

    // The gateway
    READY: Kind::Gauge, "thingspace.gateway.ready", "", [],
        "Whether calls can be answered";
    BUILD_INFO: Kind::Gauge, "thingspace.gateway.build.info", "", [VERSION],
        "Always 1, with the version";
    CERTIFICATE_REMAINING: Kind::Gauge, "thingspace.gateway.certificate.remaining", "s",
        [LISTENER],
        "Time until the certificate of a listener expires, negative after that";
    CERTIFICATE_RENEWAL: Kind::Gauge, "thingspace.gateway.certificate.renewal", "s", [LISTENER],
        "Time until the renewal of the certificate of a listener is overdue, negative after that: \
         when a quarter of its time is left, at most two weeks";
    FILES_REFUSED: Kind::Gauge, "thingspace.gateway.files.refused", "{file}", [FILES],
        "Watched files, or sets of files that belong together, whose newest content is not in use";
    RELOADS: Kind::Counter, "thingspace.gateway.reloads", "{reload}", [FILES, OUTCOME],
        "Files whose new content came into use, or could not be used";
    CONNECTIONS_OPEN: Kind::UpDownCounter, "thingspace.gateway.connections.open", "{connection}",
        [LISTENER],
        "Open connections of a listener";
    CONNECTIONS_REFUSED: Kind::Counter, "thingspace.gateway.connections.refused", "{connection}",
        [LISTENER, REASON],
        "Connections that were closed because of a limit, or whose handshake failed";
    RUNTIME_WORKERS: Kind::Gauge, "thingspace.gateway.runtime.workers", "{thread}", [],
        "Worker threads of the runtime";
    RUNTIME_TASKS: Kind::Gauge, "thingspace.gateway.runtime.tasks", "{task}", [],
        "Tasks of the runtime that have not ended";
    RUNTIME_QUEUE: Kind::Gauge, "thingspace.gateway.runtime.queue", "{task}", [],
        "Tasks in the runtime's global queue";
    RUNTIME_BUSY: Kind::Counter, "thingspace.gateway.runtime.busy", "s", [],
        "Time that all workers together spent on tasks";
    PROCESS_CPU_TIME: Kind::Counter, "process.cpu.time", "s", [CPU_MODE],
        "CPU time of the process";
    PROCESS_MEMORY_USAGE: Kind::UpDownCounter, "process.memory.usage", "By", [],
        "Physical memory of the process";
    PROCESS_FILE_DESCRIPTORS: Kind::UpDownCounter, "process.unix.file_descriptor.count",
        "{file_descriptor}", [],
        "Open file descriptors of the process";
    PROCESS_THREADS: Kind::UpDownCounter, "process.thread.count", "{thread}", [],
        "Threads of the process";
    PROCESS_UPTIME: Kind::Gauge, "process.uptime", "s", [],
        "Time since the process started";
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../docs/metrics.md");

    /// Returns the name in the Prometheus text formats.
    fn prometheus_name(metric: &Metric) -> String {
        let unit = match metric.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            _ => "",
        };
        let end = if matches!(metric.kind, Kind::Counter) { "_total" } else { "" };
        format!("{}{unit}{end}", metric.name.replace('.', "_"))
    }

    fn row(metric: &Metric) -> String {
        let Metric { name, kind, unit, attributes, meaning } = metric;
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::UpDownCounter => "up-down counter",
            Kind::Histogram(_) => "histogram",
        };
        let unit = if unit.is_empty() { "0 or 1" } else { unit };
        let attributes: Vec<_> = attributes.iter().map(|key| format!("`{key}`")).collect();
        let attributes =
            if attributes.is_empty() { "–".to_owned() } else { attributes.join(", ") };
        let prometheus = prometheus_name(metric);
        format!("| `{name}`<br>`{prometheus}` | {kind} | {unit} | {attributes} | {meaning}. |")
    }

    #[test]
    fn the_page_lists_every_metric_and_no_other() {
        for metric in ALL {
            let row = row(metric);
            assert!(PAGE.lines().any(|line| line == row), "docs/metrics.md lacks:\n{row}");
        }
        let rows = PAGE.lines().filter(|line| line.contains("`<br>`")).count();
        assert_eq!(rows, ALL.len());
    }

    #[test]
    fn names_and_meanings_have_one_form() {
        for metric in ALL {
            let Metric { name, meaning, .. } = metric;
            assert_eq!(ALL.iter().filter(|other| other.name == *name).count(), 1, "{name}");
            assert!(!meaning.ends_with('.') && !meaning.contains(['|', '"']), "{meaning}");
        }
    }
}
