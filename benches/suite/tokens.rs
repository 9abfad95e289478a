//! Tokens that end while calls are made.

use std::{thread::sleep, time::Duration};

use crate::{
    Context,
    gateway::{CREDENTIALS, Gateway, folder, place},
    load::Load,
    report::{Goal, Section, Unit},
    upstream::Upstream,
};

/// The time that ThingSpace takes for an answer. It is long in comparison with everything else.
const ROUND_TRIP: Duration = Duration::from_millis(50);

const IN_FLIGHT: usize = 16;

/// The time between the begin of the load and the end of the token.
const BEFORE: Duration = Duration::from_millis(500);

/// Ends a token at the upstream.
type End = fn(&mut Upstream);

pub(crate) async fn measure(context: &mut Context) {
    let mut section = Section::new(
        "Tokens that end under load",
        format!(
            "{IN_FLIGHT} status calls in flight. ThingSpace takes {} ms for each answer. The delay \
             is the longest call without its own round trip, in round trips. A refused call, a \
             login and the repeated call take three, so the least delay is two, and three if the \
             bearer token has ended, too.",
            ROUND_TRIP.as_millis()
        ),
    );
    let mut upstream = Upstream::start_slow(ROUND_TRIP);
    let folder = folder();
    let gateway = Gateway::start(folder.path(), &upstream.url);
    // Of one account, so that all wait for one login.
    let requests = (0..IN_FLIGHT).map(|n| n * CREDENTIALS);
    let calls = place(&mut gateway.process.client().await, requests, "plan 1").await;
    let target = gateway.target();
    let ends: [(&str, &str, End, f64); 2] = [
        ("session", "the session ends", Upstream::end_session, 2.5),
        ("bearer", "the bearer token ends", Upstream::end_bearer, 3.5),
    ];
    for (id, what, end, goal) in ends {
        let (mut failed, mut delays) = (Vec::new(), Vec::new());
        for _ in 0..context.plan.runs {
            let load = Load::new(&target, IN_FLIGHT, BEFORE * 3, &calls, None);
            let measured = load.run(|| {
                sleep(BEFORE);
                end(&mut upstream);
            });
            failed.push(f64::from(measured.failed));
            let round_trip = ROUND_TRIP.as_secs_f64() * 1e3;
            delays.push((measured.max - round_trip) / round_trip);
        }
        let zero = Some(Goal::Value(0.0));
        section.row(
            (format!("expiry_{id}_failed"), format!("failed calls, {what}")),
            Unit::Count,
            &failed,
            None,
            zero,
        );
        section.row(
            (format!("expiry_{id}_delay"), format!("delay in round trips, {what}")),
            Unit::Count,
            &delays,
            None,
            Some(Goal::Value(goal)),
        );
    }
    context.report.sections.push(section);
}
