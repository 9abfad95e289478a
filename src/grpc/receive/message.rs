//! A length-prefixed message that is being received.

use bytes::Bytes;
use tonic::Status;

use crate::grpc::{limits::Permit, status};

/// The flag and the length before a message (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(super) const PREFIX: usize = 5;

/// The first buffer of a message, in bytes. It doubles when it is full.
const FIRST_BUFFER: usize = 1 << 10;

#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    /// Holds the capacity of `bytes`.
    permit: Permit,
    taken: usize,
    largest: usize,
}

impl Message {
    /// `permit`: of no bytes yet. `largest`: the limit for the message without its prefix.
    pub(super) fn new(permit: Permit, largest: usize) -> Self {
        Self { bytes: Vec::new(), permit, taken: 0, largest }
    }

    /// Appends what has arrived. It is copied, because a small slice would keep the whole buffer of
    /// its connection in memory.
    pub(super) fn push(&mut self, mut data: &[u8]) -> Result<(), Status> {
        if let Some(rest) = PREFIX.checked_sub(self.bytes.len()).filter(|rest| *rest > 0) {
            let (prefix, behind) = data.split_at(rest.min(data.len()));
            self.append(prefix)?;
            data = behind;
        }
        let Some(length) = self.length() else { return Ok(()) };
        if length > self.largest {
            return Err(status::message_too_large(self.largest));
        }
        if self.bytes.len() + data.len() > PREFIX + length {
            return Err(status::malformed("the request has more than one message"));
        }
        self.append(data)
    }

    /// Returns the complete message with its prefix.
    pub(super) fn finish(self) -> Result<(Bytes, Permit), Status> {
        if self.bytes.is_empty() {
            return Err(status::malformed("the request has no message"));
        }
        if self.length().is_none_or(|length| self.bytes.len() < PREFIX + length) {
            return Err(status::malformed("the request ended before its message was complete"));
        }
        Ok((self.bytes.into(), self.permit))
    }

    /// Returns the length in the prefix, once it has arrived.
    fn length(&self) -> Option<usize> {
        let [_, length @ ..] = self.bytes.first_chunk::<PREFIX>()?;
        Some(usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX))
    }

    fn append(&mut self, data: &[u8]) -> Result<(), Status> {
        let needed = self.bytes.len() + data.len();
        if needed > self.taken {
            let most = self.length().map_or(FIRST_BUFFER, |length| PREFIX + length);
            let capacity = needed.max(2 * self.taken).max(FIRST_BUFFER).min(most).max(needed);
            if let Err(reached) = self.permit.grow(capacity - self.taken) {
                return Err(self.permit.refused(reached));
            }
            self.taken = capacity;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::{
        config::Config,
        grpc::limits::{CallerKey, Limits, Pool},
    };

    fn receive(largest: usize, pieces: &[&[u8]]) -> Result<Bytes, (Code, String)> {
        let allowance = Limits::new(&Config::defaults()).allowance(CallerKey::Other);
        let mut message = Message::new(allowance.take(Pool::RequestBytes, 0).unwrap(), largest);
        let received = pieces.iter().try_for_each(|piece| message.push(piece));
        let finished = received.and_then(|()| message.finish());
        finished
            .map(|(bytes, _)| bytes)
            .map_err(|status| (status.code(), status.message().to_owned()))
    }

    #[test]
    fn exactly_one_message_is_received() {
        let whole: &[u8] = &[0, 0, 0, 0, 3, 1, 2, 3];
        assert_eq!(receive(3, &[whole]).unwrap(), whole);
        for at in 0..=whole.len() {
            let (begin, end) = whole.split_at(at);
            assert_eq!(receive(3, &[begin, &[], end]).unwrap(), whole, "{at}");
        }
        let bytes: Vec<_> = whole.chunks(1).collect();
        assert_eq!(receive(3, &bytes).unwrap(), whole);
        assert_eq!(receive(0, &[&[0; PREFIX]]).unwrap(), &[0; PREFIX][..]);
    }

    #[test]
    fn anything_else_is_refused() {
        let refused = |pieces: &[&[u8]]| receive(3, pieces).unwrap_err();
        let code = |pieces: &[&[u8]]| refused(pieces).0;
        assert!(refused(&[]).1.contains("no message"));
        for end in 1..8 {
            assert!(refused(&[&[0, 0, 0, 0, 3, 1, 2, 3][..end]]).1.contains("complete"), "{end}");
        }
        assert!(refused(&[&[0, 0, 0, 0, 1, 1, 2]]).1.contains("more than one"));
        assert!(refused(&[&[0; 2 * PREFIX]]).1.contains("more than one"));
        assert!(refused(&[&[0; PREFIX], &[0]]).1.contains("more than one"));
        assert_eq!(code(&[&[0, 0, 0, 0, 4]]), Code::OutOfRange);
        assert_eq!(code(&[&[0, 255, 255, 255], &[255, 1]]), Code::OutOfRange);
    }

    /// A message that is received slowly never holds more than twice what has arrived.
    #[test]
    fn the_bytes_that_have_arrived_are_taken() {
        let largest = 1 << 20;
        let allowance = Limits::new(&Config::defaults()).allowance(CallerKey::Other);
        let mut message = Message::new(allowance.take(Pool::RequestBytes, 0).unwrap(), largest);
        let length = u32::try_from(largest).unwrap().to_be_bytes();
        message.push(&[&[0][..], &length].concat()).unwrap();
        assert_eq!(message.taken, FIRST_BUFFER);
        for _ in 0..largest / 1_000 {
            message.push(&[7; 1_000]).unwrap();
            assert!(message.taken <= (2 * message.bytes.len()).max(FIRST_BUFFER));
            assert!(message.bytes.capacity() <= message.taken);
        }
        message.push(&[7; 576]).unwrap();
        assert_eq!(message.finish().unwrap().0.len(), PREFIX + largest);
    }
}
