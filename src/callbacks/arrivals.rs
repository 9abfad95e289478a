//! The bodies that are being read, bounded in total and for each sender of an account.
//!
//! A new body is always read. Where a bound is reached, the oldest body of the same sender is given
//! up, or, for the bound on all, the oldest of the account and the sender with the most. A genuine
//! callback arrives within milliseconds, so those who send slowly give way to those who do not, and
//! callbacks of one account do not wait for another's.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio_util::sync::CancellationToken;

use crate::{identity::AccountName, lock::lock};

/// Bodies being read at once. Each takes at most `MAX_BODY` bytes.
const MAX_ARRIVALS: usize = 384;

/// Of these, for one account from one address. A proxy in front of the listener is one address.
const MAX_ARRIVALS_OF_SENDER: usize = 256;

#[derive(Debug, Clone, Default)]
pub(super) struct Arrivals(Arc<Mutex<Bodies>>);

#[derive(Debug, Default)]
struct Bodies {
    count: u64,
    /// Oldest first.
    being_read: BTreeMap<u64, Body>,
}

type Sender = (AccountName, IpAddr);

#[derive(Debug)]
struct Body {
    sender: Sender,
    given_up: CancellationToken,
}

/// A body while it is being read.
#[derive(Debug)]
pub(super) struct Arrival {
    /// Another body took its place.
    pub(super) given_up: CancellationToken,
    number: u64,
    arrivals: Arrivals,
}

impl Arrivals {
    pub(super) fn begin(&self, account: &AccountName, source: IpAddr) -> Arrival {
        let sender = (account.clone(), source);
        let mut bodies = self.bodies();
        let of_sender = bodies.being_read.values().filter(|body| body.sender == sender).count();
        if of_sender >= MAX_ARRIVALS_OF_SENDER {
            bodies.give_up(|body| body.sender == sender);
        } else if bodies.being_read.len() >= MAX_ARRIVALS {
            bodies.give_up(|_| true);
        }
        bodies.count += 1;
        let (number, given_up) = (bodies.count, CancellationToken::new());
        bodies.being_read.insert(number, Body { sender, given_up: given_up.clone() });
        drop(bodies);
        Arrival { given_up, number, arrivals: self.clone() }
    }

    fn bodies(&self) -> MutexGuard<'_, Bodies> {
        lock(&self.0)
    }
}

impl Bodies {
    /// Gives up one of these: of the account with the most, of its sender with the most, the
    /// oldest.
    fn give_up(&mut self, which: impl Fn(&Body) -> bool) {
        let (mut of_account, mut of_sender) = (HashMap::new(), HashMap::new());
        for body in self.being_read.values() {
            *of_account.entry(&body.sender.0).or_insert(0_usize) += 1;
            *of_sender.entry(&body.sender).or_insert(0_usize) += 1;
        }
        let candidates = self.being_read.iter().filter(|(_, body)| which(body));
        let chosen = candidates.max_by_key(|(number, body)| {
            (of_account.get(&body.sender.0), of_sender.get(&body.sender), Reverse(**number))
        });
        if let Some(number) = chosen.map(|(number, _)| *number)
            && let Some(body) = self.being_read.remove(&number)
        {
            body.given_up.cancel();
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrivals.bodies().being_read.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(n: u32) -> AccountName {
        AccountName::parse(&format!("0000123456-{n:05}")).unwrap()
    }

    fn address(n: usize) -> IpAddr {
        IpAddr::from([192, 0, 2, u8::try_from(n).unwrap()])
    }

    fn given_up(arrivals: &[Arrival]) -> Vec<usize> {
        let given_up = arrivals.iter().enumerate().filter(|(_, one)| one.given_up.is_cancelled());
        given_up.map(|(n, _)| n).collect()
    }

    #[test]
    fn the_oldest_body_of_a_sender_gives_way() {
        let arrivals = Arrivals::default();
        let other = arrivals.begin(&account(1), address(9));
        let bodies: Vec<_> = (0..MAX_ARRIVALS_OF_SENDER + 2)
            .map(|_| arrivals.begin(&account(1), address(1)))
            .collect();
        assert_eq!(given_up(&bodies), [0, 1]);
        assert!(!other.given_up.is_cancelled());
        assert_eq!(arrivals.bodies().being_read.len(), MAX_ARRIVALS_OF_SENDER + 1);
        drop((bodies, other));
        assert!(arrivals.bodies().being_read.is_empty());
    }

    #[test]
    fn the_account_with_the_most_bodies_gives_way_first() {
        let arrivals = Arrivals::default();
        let other = arrivals.begin(&account(2), address(255));
        let bodies: Vec<_> =
            (0..MAX_ARRIVALS + 5).map(|n| arrivals.begin(&account(1), address(n % 250))).collect();
        assert!(!other.given_up.is_cancelled());
        assert_eq!(given_up(&bodies).len(), 6);
        assert!(given_up(&bodies).iter().all(|n| *n < 250), "the oldest of those that send twice");
        assert_eq!(arrivals.bodies().being_read.len(), MAX_ARRIVALS);
    }
}
