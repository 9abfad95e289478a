use super::*;

const PLENTY: PoolLimits =
    PoolLimits { name: "plenty", total: usize::MAX / 2, share: usize::MAX / 2, little: 0 };

fn named(name: &str) -> CallerKey {
    CallerKey::Named(name.into())
}

fn usage(calls: u32, orders: PoolLimits) -> Usage {
    let mut pools = [PLENTY; POOLS];
    pools[Pool::Orders as usize] = orders;
    Usage::new(&pools, RateLimits { calls, watches: 1_000, open_calls: 7 }, "rate")
}

/// Returns how many calls are counted at once.
fn counted(usage: &Usage, caller: &CallerKey, rate: Rate, now: Instant) -> usize {
    (0..100_000).take_while(|_| usage.count(caller, rate, now).is_ok()).count()
}

#[test]
fn calls_are_saved_for_ten_seconds_and_orders_leave_a_quarter() {
    let (usage, now) = (usage(100, PLENTY), Instant::now());
    let (a, b) = (named("a"), named("b"));
    assert_eq!(counted(&usage, &a, Rate::Orders, now), 750);
    assert_eq!(counted(&usage, &a, Rate::StatusCalls, now), 250);
    assert_eq!(counted(&usage, &a, Rate::Orders, now), 0);
    assert_eq!(counted(&usage, &b, Rate::StatusCalls, now), 1_000);
    let reached = usage.count(&a, Rate::StatusCalls, now).unwrap_err();
    let retry_after = Some(Duration::from_millis(10));
    assert_eq!(reached, LimitReached { limit: "rate", retry_after });
    // After a second, 100 calls are saved again: status calls before orders.
    let later = now + Duration::from_secs(1);
    assert_eq!(counted(&usage, &a, Rate::Orders, later), 0);
    assert_eq!(counted(&usage, &a, Rate::StatusCalls, later), 100);
    let much_later = now + Duration::from_hours(1);
    assert_eq!(counted(&usage, &a, Rate::Orders, much_later), 750);
}

#[test]
fn other_calls_have_buckets_of_their_own() {
    let (usage, now, a) = (usage(10, PLENTY), Instant::now(), named("a"));
    assert_eq!(counted(&usage, &a, Rate::Watches, now), 1_000);
    assert_eq!(counted(&usage, &a, Rate::OpenCalls, now), 70);
    assert_eq!(counted(&usage, &a, Rate::StatusCalls, now), 100);
    let later = now + Duration::from_secs(1);
    assert_eq!(counted(&usage, &a, Rate::Watches, later), 10);
}

#[test]
fn a_caller_has_a_share_and_the_last_quarter_is_for_little() {
    let usage = usage(1, PoolLimits { name: "orders", total: 100, share: 40, little: 2 });
    let take = |caller: &str, amount| usage.take(&named(caller), Pool::Orders, amount);
    let reached = LimitReached { limit: "orders", retry_after: None };
    assert_eq!(take("a", 41).unwrap_err(), reached);
    let mut a = take("a", 30).unwrap();
    a.grow(10).unwrap();
    assert_eq!(a.grow(1).unwrap_err(), reached);
    let b = take("b", 35).unwrap();
    assert_eq!(take("c", 3).unwrap_err(), reached);
    let little: Vec<_> = (0..12).map(|n| take(&format!("c{n}"), 2).unwrap()).collect();
    take("c0", 1).unwrap_err();
    let _last = take("d", 1).unwrap();
    take("e", 1).unwrap_err();
    drop((a, little));
    take("c", 39).unwrap();
    drop(b);
    assert_eq!(lock(&usage.0.state).used[Pool::Orders as usize], 1);
}

#[test]
fn the_table_is_bounded_and_forgets_idle_callers() {
    let (usage, now) = (usage(1, PLENTY), Instant::now() + SWEEP_EVERY);
    let address = |n: u32| CallerKey::Address(IpAddr::V4(n.into()));
    let callers = || lock(&usage.0.state).callers.len();
    let last = u32::try_from(2 * MAX_CALLERS).unwrap();
    for n in 0..last {
        usage.count(&address(n), Rate::Orders, now).ok();
    }
    // Those above the limit share an entry.
    assert_eq!(callers(), MAX_CALLERS + 1);
    usage.count(&address(last), Rate::Orders, now).unwrap_err();
    let permit = usage.take(&address(last), Pool::Orders, 3).unwrap();
    assert_eq!(permit.caller(), &CallerKey::Other);
    // The calls are saved again after a second; what is used is never forgotten.
    let later = now + 2 * SWEEP_EVERY + SAVED;
    usage.count(&address(last), Rate::Orders, later).unwrap();
    assert_eq!(callers(), 2);
    drop(permit);
    usage.count(&address(0), Rate::Orders, later + 2 * SWEEP_EVERY + SAVED).unwrap();
    assert_eq!(callers(), 1);
}

#[test]
fn addresses_of_a_site_are_one_caller() {
    let key = |text: &str| CallerKey::of_address(Some(text.parse().unwrap()));
    assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    assert_eq!(key("2001:db8:1:2::3"), key("2001:db8:1:2:4:5:6:7"));
    assert_ne!(key("2001:db8:1:2::3"), key("2001:db8:1:3::3"));
    assert_eq!(CallerKey::of_address(None), CallerKey::Other);
}
