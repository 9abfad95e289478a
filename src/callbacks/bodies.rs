//! The bodies that are being read. Their number is limited in total and for each sender of an
//! account.
//!
//! A new body is always read. If its sender has reached its limit, the oldest body of this sender
//! is evicted. If the total limit is reached, the account with the most bodies is chosen, then its
//! sender with the most, and the oldest body of that sender is evicted. ThingSpace sends a body
//! within milliseconds, so slow senders delay neither ThingSpace nor other accounts.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    error::Error,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio_util::sync::CancellationToken;

use super::CallbackOutcome;
use crate::{identity::AccountName, lock::lock};

/// The largest body of a callback, in bytes.
const MAX_BODY: usize = 256 << 10;

/// The most bodies that are read at once, each of at most [`MAX_BODY`] bytes.
const MAX_BODIES: usize = 384;

/// The most bodies that are read at once for one account from one address. All senders behind a
/// proxy have one address.
const MAX_BODIES_OF_SENDER: usize = 256;

#[derive(Debug, Clone, Default)]
pub(super) struct Bodies(Arc<Mutex<BodiesState>>);

#[derive(Debug, Default)]
struct BodiesState {
    /// The number of the last body.
    last: u64,
    /// By number, so that the oldest is first.
    arriving: BTreeMap<u64, (BodySender, CancellationToken)>,
}

type BodySender = (AccountName, IpAddr);

/// A body while it is being read.
#[derive(Debug)]
pub(super) struct ArrivingBody {
    /// Cancelled when the body is evicted.
    pub(super) evicted: CancellationToken,
    number: u64,
    bodies: Bodies,
}

impl Bodies {
    pub(super) fn begin(&self, account: &AccountName, source: IpAddr) -> ArrivingBody {
        let sender = (account.clone(), source);
        let mut state = lock(&self.0);
        let of_sender = state.arriving.values().filter(|(of, _)| *of == sender).count();
        if of_sender >= MAX_BODIES_OF_SENDER {
            state.evict(|of| *of == sender);
        } else if state.arriving.len() >= MAX_BODIES {
            state.evict(|_| true);
        }
        state.last += 1;
        let (number, evicted) = (state.last, CancellationToken::new());
        state.arriving.insert(number, (sender, evicted.clone()));
        drop(state);
        ArrivingBody { evicted, number, bodies: self.clone() }
    }
}

impl BodiesState {
    /// Evicts a body of one of the senders for which `candidate` is true: chooses the account with
    /// the most bodies, then its sender with the most, then the oldest body.
    fn evict(&mut self, candidate: impl Fn(&BodySender) -> bool) {
        let (mut of_account, mut of_sender) = (HashMap::new(), HashMap::new());
        for (sender, _) in self.arriving.values() {
            *of_account.entry(&sender.0).or_insert(0_usize) += 1;
            *of_sender.entry(sender).or_insert(0_usize) += 1;
        }
        let candidates = self.arriving.iter().filter(|(_, (sender, _))| candidate(sender));
        let chosen = candidates.max_by_key(|(number, (sender, _))| {
            (of_account.get(&sender.0), of_sender.get(sender), Reverse(**number))
        });
        if let Some(number) = chosen.map(|(number, _)| *number)
            && let Some((_, evicted)) = self.arriving.remove(&number)
        {
            evicted.cancel();
        }
    }
}

impl Drop for ArrivingBody {
    fn drop(&mut self) {
        lock(&self.bodies.0).arriving.remove(&self.number);
    }
}

/// Reads a body of at most [`MAX_BODY`] bytes.
pub(super) async fn read<B>(body: B) -> Result<Bytes, CallbackOutcome>
where
    B: Body<Data = Bytes, Error: Error + Send + Sync + 'static>,
{
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(CallbackOutcome::TooLarge);
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(CallbackOutcome::TooLarge),
        Err(_) => Err(CallbackOutcome::Broken),
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

    fn evicted(arriving: &[ArrivingBody]) -> Vec<usize> {
        let evicted = arriving.iter().enumerate().filter(|(_, one)| one.evicted.is_cancelled());
        evicted.map(|(n, _)| n).collect()
    }

    #[test]
    fn the_oldest_body_of_a_sender_is_evicted() {
        let bodies = Bodies::default();
        let other = bodies.begin(&account(1), address(9));
        let arriving: Vec<_> =
            (0..MAX_BODIES_OF_SENDER + 2).map(|_| bodies.begin(&account(1), address(1))).collect();
        assert_eq!(evicted(&arriving), [0, 1]);
        assert!(!other.evicted.is_cancelled());
        assert_eq!(lock(&bodies.0).arriving.len(), MAX_BODIES_OF_SENDER + 1);
        drop((arriving, other));
        assert!(lock(&bodies.0).arriving.is_empty());
    }

    #[test]
    fn a_body_of_the_account_with_the_most_bodies_is_evicted() {
        let bodies = Bodies::default();
        let other = bodies.begin(&account(2), address(255));
        let arriving: Vec<_> =
            (0..MAX_BODIES + 5).map(|n| bodies.begin(&account(1), address(n % 250))).collect();
        assert!(!other.evicted.is_cancelled());
        assert_eq!(evicted(&arriving).len(), 6);
        assert!(evicted(&arriving).iter().all(|n| *n < 250), "the oldest of senders with two");
        assert_eq!(lock(&bodies.0).arriving.len(), MAX_BODIES);
    }
}
