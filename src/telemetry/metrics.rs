//! The instruments. What an operator can read elsewhere, in the log, the audit log or `status`, is
//! counted or read in the same place.
//!
//! - Counters, amounts and histograms are fields of [`Metrics`], recorded where something happens.
//! - Gauges are read when metrics are collected ([`observe`]), by a scrape of `/metrics`
//!   ([`text`]) or the OTLP exporter.
//!
//! There is one set of instruments in a process, because exporters belong to the process. Without
//! [`super::init`], for example in tests that run several gateways, they record nothing.

mod process;
mod readers;
pub(crate) mod text;

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use opentelemetry::{
    KeyValue, Value, global,
    metrics::{AsyncInstrument, Counter, Histogram, Meter, UpDownCounter},
};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider, Temporality, exporter::PushMetricExporter},
};

use super::{
    SERVICE_NAME,
    names::{self, Kind, Metric},
};
use crate::lock::lock;
use readers::Readers;

/// The most callers with a name of their own in metrics.
const MAX_CALLERS: usize = 200;

/// Declares [`Metrics`]: its counters, amounts and histograms, each with its row of [`names`].
macro_rules! instruments {
    (counters { $($counter:ident = $counter_metric:ident,)+ }
     amounts { $($amount:ident = $amount_metric:ident,)+ }
     histograms { $($histogram:ident = $histogram_metric:ident,)+ }) => {
        /// The instruments of the process that are recorded where something happens.
        #[derive(Debug)]
        pub(crate) struct Metrics {
            $(pub(crate) $counter: Count,)+
            $(pub(crate) $amount: Amount,)+
            $(pub(crate) $histogram: Distribution,)+
        }

        impl Metrics {
            fn new(meter: &Meter) -> Self {
                Self {
                    $($counter: Count::new(meter, &names::$counter_metric),)+
                    $($amount: Amount::new(meter, &names::$amount_metric),)+
                    $($histogram: Distribution::new(meter, &names::$histogram_metric),)+
                }
            }
        }
    };
}

instruments! {
    counters {
        caller_calls = CALLER_CALLS,
        call_failures = CALL_FAILURES,
        calls_denied = CALLS_DENIED,
        limits_reached = LIMITS_REACHED,
        slow_readers = SLOW_READERS,
        watches_begun = WATCHES_BEGUN,
        watches_ended = WATCHES_ENDED,
        orders = ORDERS,
        breaker_opened = BREAKER_OPENED,
        polls = POLLS,
        renewals = RENEWALS,
        callbacks = CALLBACKS,
        callbacks_stray = CALLBACKS_STRAY,
        quarantine_evicted = QUARANTINE_EVICTED,
        reloads = RELOADS,
        connections_refused = CONNECTIONS_REFUSED,
    }
    amounts {
        connections_open = CONNECTIONS_OPEN,
        watches_open = WATCHES_OPEN,
    }
    histograms {
        rpc_server_call_duration = RPC_SERVER_CALL_DURATION,
        watch_delay = WATCH_DELAY,
        request_duration = REQUEST_DURATION,
        http_client_request_duration = HTTP_CLIENT_REQUEST_DURATION,
        permit_wait = PERMIT_WAIT,
        poll_delay = POLL_DELAY,
        callback_duration = CALLBACK_DURATION,
        store_duration = STORE_DURATION,
    }
}

/// Counts since the start of the process.
#[derive(Debug)]
pub(crate) struct Count(Counter<u64>, &'static Metric);

impl Count {
    fn new(meter: &Meter, metric: &'static Metric) -> Self {
        let builder = meter.u64_counter(metric.name);
        Self(builder.with_unit(metric.unit).with_description(metric.meaning).build(), metric)
    }

    /// Makes the count visible with 0, so that its first event is seen as an increase.
    pub(crate) fn start(&self, attributes: &[KeyValue]) {
        self.1.check(attributes);
        self.0.add(0, attributes);
    }

    pub(crate) fn add(&self, attributes: &[KeyValue]) {
        self.1.check(attributes);
        self.0.add(1, attributes);
    }
}

/// How many there are now.
#[derive(Debug)]
pub(crate) struct Amount(UpDownCounter<i64>, &'static Metric);

impl Amount {
    fn new(meter: &Meter, metric: &'static Metric) -> Self {
        let builder = meter.i64_up_down_counter(metric.name);
        Self(builder.with_unit(metric.unit).with_description(metric.meaning).build(), metric)
    }

    /// Counts one while the guard is held.
    pub(crate) fn hold<const N: usize>(&'static self, attributes: [KeyValue; N]) -> Held<N> {
        self.1.check(&attributes);
        self.0.add(1, &attributes);
        Held { amount: self, attributes }
    }
}

/// One of an [`Amount`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Held<const N: usize> {
    amount: &'static Amount,
    attributes: [KeyValue; N],
}

impl<const N: usize> Drop for Held<N> {
    fn drop(&mut self) {
        self.amount.0.add(-1, &self.attributes);
    }
}

/// Counts values by their size.
#[derive(Debug)]
pub(crate) struct Distribution(Histogram<f64>, &'static Metric);

impl Distribution {
    fn new(meter: &Meter, metric: &'static Metric) -> Self {
        let Kind::Histogram(bounds) = metric.kind else {
            unreachable!("{} has no bounds", metric.name)
        };
        let builder = meter.f64_histogram(metric.name).with_boundaries(bounds.to_vec());
        Self(builder.with_unit(metric.unit).with_description(metric.meaning).build(), metric)
    }

    pub(crate) fn record(&self, value: Duration, attributes: &[KeyValue]) {
        self.1.check(attributes);
        self.0.record(value.as_secs_f64(), attributes);
    }
}

/// Returns the instruments of the process.
pub(crate) fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics::new(&meter()));
    &METRICS
}

/// Returns an attribute. `key` is one of [`names`].
pub(crate) fn attribute(key: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(key, value)
}

/// Returns the attribute of a caller: its name, or [`names::OTHER`] if there are too many.
pub(crate) fn caller_attribute(name: &str) -> KeyValue {
    static CALLERS: Mutex<Option<HashSet<Arc<str>>>> = Mutex::new(None);
    let mut known = lock(&CALLERS);
    let known = known.get_or_insert_default();
    let value: Value = match known.get(name) {
        Some(name) => Arc::clone(name).into(),
        None if known.len() < MAX_CALLERS => {
            let name: Arc<str> = name.into();
            known.insert(Arc::clone(&name));
            name.into()
        }
        None => names::OTHER.into(),
    };
    KeyValue::new(names::CALLER, value)
}

/// Converts a count. Counts are far below 2^52, above which a float is not exact.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(crate) fn number(count: usize) -> f64 {
    count as f64
}

/// Receives the values of a gauge, each with its attributes.
pub(crate) type Observer<'a> = dyn FnMut(f64, &[KeyValue]) + 'a;

/// Registers what reads a gauge, or a counter that something else counts, when metrics are
/// collected. `read` must not block for long. It is called on threads that are no workers of the
/// runtime.
pub(crate) fn observe(
    metric: &'static Metric,
    read: impl Fn(&mut Observer<'_>) + Send + Sync + 'static,
) {
    let meter = meter();
    let read = move |instrument: &dyn AsyncInstrument<f64>| {
        read(&mut |value, attributes| {
            metric.check(attributes);
            instrument.observe(value, attributes);
        });
    };
    // The provider keeps the instruments.
    match metric.kind {
        Kind::Gauge => {
            let builder = meter.f64_observable_gauge(metric.name);
            builder
                .with_unit(metric.unit)
                .with_description(metric.meaning)
                .with_callback(read)
                .build();
        }
        Kind::UpDownCounter => {
            let builder = meter.f64_observable_up_down_counter(metric.name);
            builder
                .with_unit(metric.unit)
                .with_description(metric.meaning)
                .with_callback(read)
                .build();
        }
        Kind::Counter => {
            let builder = meter.f64_observable_counter(metric.name);
            builder
                .with_unit(metric.unit)
                .with_description(metric.meaning)
                .with_callback(read)
                .build();
        }
        Kind::Histogram(_) => unreachable!("a histogram is not observed"),
    }
}

/// Installs the provider of the process: `/metrics`, and an OTLP exporter if there is one.
pub(super) fn install(
    resource: Resource,
    exporter: Option<MetricExporter>,
) -> anyhow::Result<SdkMeterProvider> {
    let (provider, scraped) =
        (SdkMeterProvider::builder().with_resource(resource), text::reader()?);
    let provider = match exporter {
        None => provider.with_reader(scraped),
        Some(exporter) => {
            let is_cumulative = exporter.temporality() == Temporality::Cumulative;
            let sent = PeriodicReader::builder(exporter).build();
            if is_cumulative {
                provider.with_reader(Readers { scraped, sent })
            } else {
                provider.with_reader(scraped).with_reader(sent)
            }
        }
    };
    let provider = provider.build();
    global::set_meter_provider(provider.clone());
    observe(&names::BUILD_INFO, |observe| {
        observe(1.0, &[attribute(names::VERSION, env!("CARGO_PKG_VERSION"))]);
    });
    process::observe_all();
    Ok(provider)
}

fn meter() -> Meter {
    global::meter(SERVICE_NAME)
}
