//! The gauges of the gateway: its state at the moment of a scrape or an export.
//!
//! They are read where the command `status` reads, so both say the same. All gauges of one scrape
//! come from one [`Snapshot`], which is at most [`FRESH`] old.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use opentelemetry::KeyValue;
use tokio::{runtime::Handle, time::timeout};

use crate::{
    callbacks::{
        Callbacks,
        registration::{Registrar, RegistrationState},
    },
    certificate::Validity,
    control::GatewayParts,
    identity::AccountName,
    lock::lock,
    reload::refused_files,
    requests::{
        StoreState,
        inspect::ages::{AGES, OpenByAge},
    },
    store::StoreMeasures,
    telemetry::{
        attribute,
        metrics::{Observer, number, observe},
        names::{self, Metric},
    },
    thingspace::{HostHealth, LoginMeasures, LoginState, TokenMeasures},
};

/// How long a snapshot is used. A scrape reads all gauges within this time.
const FRESH: Duration = Duration::from_millis(250);

/// How long a scrape waits for the store, which is asked about the unknown orders.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that gauges show.
#[derive(Debug)]
struct Snapshot {
    ready: bool,
    store_usable: bool,
    store_state: StoreState,
    store: StoreMeasures,
    lag: Option<u64>,
    unreadable_logs: usize,
    unknown_orders: Option<usize>,
    open: HashMap<AccountName, OpenByAge>,
    poll_backlog: usize,
    logins: Vec<LoginMeasures>,
    hosts: Vec<HostHealth>,
    silences: Vec<(AccountName, Duration)>,
    registrations: Vec<(AccountName, &'static str)>,
    certificates: Vec<(&'static str, Validity)>,
    refused_files: Vec<(&'static str, usize)>,
}

/// Reads the snapshots.
#[derive(Debug)]
struct Reader {
    parts: GatewayParts,
    runtime: Handle,
    last: Mutex<Option<(Instant, Arc<Snapshot>)>>,
}

/// Registers all gauges of a gateway.
pub(super) fn observe_all(parts: GatewayParts) {
    let reader = Arc::new(Reader { parts, runtime: Handle::current(), last: Mutex::default() });
    let gauge = |metric: &'static Metric, read: fn(&Snapshot, &mut Observer<'_>)| {
        let reader = Arc::clone(&reader);
        observe(metric, move |observe| read(&reader.snapshot(), observe));
    };
    gauge(&names::READY, |now, observe| observe(flag(now.ready), &[]));
    gauge(&names::STORE_USABLE, |now, observe| observe(flag(now.store_usable), &[]));
    gauge(&names::STORE_SHORT, |now, observe| {
        observe(flag(now.store_state.shortage.is_some()), &[]);
    });
    gauge(&names::STORE_LOST, |now, observe| observe(flag(now.store_state.loss.is_some()), &[]));
    gauge(&names::STORE_SIZE, |now, observe| known(now.store.size, observe));
    gauge(&names::STORE_ROOM, |now, observe| known(now.store.room, observe));
    gauge(&names::FOLLOWER_LAG, |now, observe| known(now.lag, observe));
    gauge(&names::NATS_CONNECTED, |now, observe| {
        for (name, is_up) in &now.store.connections {
            observe(flag(*is_up), &[attribute(names::CONNECTION, *name)]);
        }
    });
    gauge(&names::LOGS_UNREADABLE, |now, observe| observe(number(now.unreadable_logs), &[]));
    gauge(&names::ORDERS_UNKNOWN, |now, observe| {
        if let Some(orders) = now.unknown_orders {
            observe(number(orders), &[]);
        }
    });
    gauge(&names::REQUESTS_OPEN, |now, observe| by_age(now, |open| open.requests, observe));
    gauge(&names::DEVICES_OPEN, |now, observe| by_age(now, |open| open.devices, observe));
    gauge(&names::REQUESTS_OLDEST, |now, observe| {
        for (account, open) in &now.open {
            observe(open.oldest.as_secs_f64(), &[of(account)]);
        }
    });
    gauge(&names::POLL_BACKLOG, |now, observe| observe(number(now.poll_backlog), &[]));
    gauge(&names::BREAKER_OPEN, |now, observe| {
        for HostHealth { host, open_for, .. } in &now.hosts {
            observe(flag(open_for.is_some()), &[attribute(names::HOST, host.clone())]);
        }
    });
    gauge(&names::TOKEN_AGE, |now, observe| {
        tokens(now, |token| Some(token.age), observe);
    });
    gauge(&names::TOKEN_REMAINING, |now, observe| {
        tokens(now, |token| token.remaining, observe);
    });
    gauge(&names::LOGIN_REJECTIONS_LEFT, |now, observe| {
        for login in &now.logins {
            if let Some(left) = login.rejections_left {
                observe(left.into(), &[credentials(login)]);
            }
        }
    });
    gauge(&names::LOGIN_STATE, |now, observe| {
        for login in &now.logins {
            for (state, name) in LoginState::all() {
                let attributes = [credentials(login), attribute(names::STATE, name)];
                observe(flag(state == login.state), &attributes);
            }
        }
    });
    gauge(&names::CALLBACK_SILENCE, |now, observe| {
        for (account, silence) in &now.silences {
            observe(silence.as_secs_f64(), &[of(account)]);
        }
    });
    gauge(&names::REGISTRATION_STATE, |now, observe| {
        for (account, state) in &now.registrations {
            for name in RegistrationState::NAMES {
                let attributes = [of(account), attribute(names::STATE, name)];
                observe(flag(*state == name), &attributes);
            }
        }
    });
    gauge(&names::CERTIFICATE_REMAINING, |now, observe| {
        certificates(now, |validity| validity.expires, observe);
    });
    gauge(&names::CERTIFICATE_RENEWAL, |now, observe| {
        certificates(now, |validity| validity.overdue, observe);
    });
    gauge(&names::FILES_REFUSED, |now, observe| {
        for (kind, count) in &now.refused_files {
            observe(number(*count), &[attribute(names::FILES, *kind)]);
        }
    });
}

impl Reader {
    fn snapshot(&self) -> Arc<Snapshot> {
        let mut last = lock(&self.last);
        match &*last {
            Some((at, snapshot)) if at.elapsed() < FRESH => Arc::clone(snapshot),
            _ => {
                let snapshot = Arc::new(self.read());
                *last = Some((Instant::now(), Arc::clone(&snapshot)));
                snapshot
            }
        }
    }

    fn read(&self) -> Snapshot {
        let GatewayParts { requests, client, callbacks, registration, tls, drain, .. } =
            &self.parts;
        // Scrapes and exports run on threads that are no workers of the runtime.
        let unknown = self
            .runtime
            .block_on(async { timeout(STORE_TIMEOUT, requests.unknown_orders()).await });
        let (store, lag) = requests.store_measures();
        let states = registration.as_ref().map(Registrar::states);
        let registrations = states.iter().flat_map(|states| {
            let state = |account: &AccountName| RegistrationState::name(states.get(account));
            client.accounts().map(move |account| (account.clone(), state(account)))
        });
        let grpc = tls.as_ref().map(|tls| ("grpc", tls.validity()));
        let callbacks_certificate = callbacks.as_ref().and_then(Callbacks::certificate_validity);
        Snapshot {
            ready: !drain.is_cancelled() && self.parts.waits_for().is_none(),
            store_usable: requests.is_store_usable(),
            store_state: requests.store_state(),
            store,
            lag,
            unreadable_logs: requests.unreadable_logs().len(),
            unknown_orders: unknown.ok().and_then(Result::ok).map(|orders| orders.len()),
            open: self.open(),
            poll_backlog: requests.poll_backlog(),
            logins: client.login_measures().collect(),
            hosts: client.hosts(),
            silences: callbacks.as_ref().map(Callbacks::silences).unwrap_or_default(),
            registrations: registrations.collect(),
            certificates: grpc
                .into_iter()
                .chain(callbacks_certificate.map(|validity| ("callbacks", validity)))
                .collect(),
            refused_files: refused_files(),
        }
    }

    /// Returns the open requests of every configured account. Requests of other accounts are from
    /// an earlier configuration and are not polled.
    fn open(&self) -> HashMap<AccountName, OpenByAge> {
        let open = self.parts.requests.open_by_account();
        let of = |name: &AccountName| open.get(&Some(name.clone())).cloned().unwrap_or_default();
        self.parts.client.accounts().map(|name| (name.clone(), of(name))).collect()
    }
}

fn by_age(
    now: &Snapshot,
    select: fn(&OpenByAge) -> [usize; AGES.len()],
    observe: &mut Observer<'_>,
) {
    for (account, open) in &now.open {
        for ((_, age, _), count) in AGES.iter().zip(select(open)) {
            observe(number(count), &[of(account), attribute(names::AGE, *age)]);
        }
    }
}

fn tokens(
    now: &Snapshot,
    select: fn(&TokenMeasures) -> Option<Duration>,
    observe: &mut Observer<'_>,
) {
    for login in &now.logins {
        for (token, measures) in &login.tokens {
            if let Some(time) = measures.as_ref().and_then(select) {
                let attributes = [credentials(login), attribute(names::TOKEN, *token)];
                observe(time.as_secs_f64(), &attributes);
            }
        }
    }
}

fn certificates(now: &Snapshot, select: fn(&Validity) -> Timestamp, observe: &mut Observer<'_>) {
    for (listener, validity) in &now.certificates {
        let left = select(validity).duration_since(Timestamp::now()).as_secs_f64();
        observe(left, &[attribute(names::LISTENER, *listener)]);
    }
}

fn known(value: Option<u64>, observe: &mut Observer<'_>) {
    if let Some(value) = value.and_then(|value| usize::try_from(value).ok()) {
        observe(number(value), &[]);
    }
}

fn credentials(login: &LoginMeasures) -> KeyValue {
    attribute(names::CREDENTIALS, login.credentials.clone())
}

fn of(account: &AccountName) -> KeyValue {
    attribute(names::ACCOUNT, account.to_string())
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}
