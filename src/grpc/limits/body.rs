//! The response body of a limited call: holds its permits until it is dropped.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{Permit, Pool};
use crate::{
    grpc::{class::CallClass, status},
    server::CountedRequest,
};

/// A smaller answer is not counted, because the HTTP/2 server may buffer so much of every call.
const SMALL_ANSWER: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct LimitedBody<B> {
    /// `None`: the body has ended.
    inner: Option<B>,
    /// The permit of the call. `None`: the call was refused.
    call: Option<Permit>,
    /// The permit of a large answer that is being sent. Boxed, because a watch has none.
    answer: Option<Box<Permit>>,
    /// Protects the connection from eviction.
    _protection: Option<CountedRequest>,
    /// Whether large answers are counted. A watch has small messages, and its slow readers are
    /// ended by the server.
    is_counted: bool,
}

impl<B> LimitedBody<B> {
    pub(super) fn new(
        inner: B,
        class: CallClass,
        call: Permit,
        protection: Option<CountedRequest>,
    ) -> Self {
        Self {
            inner: Some(inner),
            call: Some(call),
            answer: None,
            _protection: protection,
            is_counted: class == CallClass::Status,
        }
    }
}

/// The body of a refused call.
impl<B> Default for LimitedBody<B> {
    fn default() -> Self {
        Self { inner: None, call: None, answer: None, _protection: None, is_counted: false }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for LimitedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { inner, call, answer, is_counted, .. } = &mut *self;
        let Some(body) = inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        let large = data.map(Bytes::len).filter(|size| *is_counted && *size > SMALL_ANSWER);
        let (Some(size), Some(call)) = (large, call) else { return Poll::Ready(frame) };
        match call.take(Pool::AnswerBytes, size) {
            Ok(taken) => {
                *answer = Some(Box::new(taken));
                Poll::Ready(frame)
            }
            Err(reached) => {
                *inner = None;
                let trailers = status::trailers(&call.refused(reached));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};
    use tonic::{Code, Status};

    use super::{
        super::{ANSWER_BYTES, CallerKey, Limits},
        *,
    };
    use crate::config::Config;

    const PAGE: usize = 1 << 20;

    fn answer(limits: &Limits, caller: &str, class: CallClass) -> LimitedBody<Full<Bytes>> {
        let permit = limits.admit(&CallerKey::Named(caller.into()), class).unwrap();
        LimitedBody::new(Full::new(vec![0; PAGE].into()), class, permit, None)
    }

    /// Returns whether the answer is sent. If not, it ends with an error.
    async fn is_sent(body: &mut LimitedBody<Full<Bytes>>) -> bool {
        let Err(frame) = body.frame().await.unwrap().unwrap().into_data() else { return true };
        let status = Status::from_header_map(frame.trailers_ref().unwrap()).unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(body.is_end_stream() && body.frame().await.is_none());
        false
    }

    #[tokio::test]
    async fn answers_that_are_not_read_are_bounded() {
        let limits = Limits::new(&Config::defaults());
        let mut unread = Vec::new();
        for caller in ["a", "b"] {
            for _ in 0..100 {
                let mut body = answer(&limits, caller, CallClass::Status);
                if is_sent(&mut body).await {
                    unread.push(body);
                }
            }
        }
        // The second caller has the other half, without the last quarter.
        assert_eq!(unread.len(), ANSWER_BYTES / 4 * 3 / PAGE);
        assert!(is_sent(&mut answer(&limits, "c", CallClass::Status)).await);
        // The messages of watches are small, and are not counted.
        assert!(is_sent(&mut answer(&limits, "a", CallClass::Watch)).await);
        drop(unread);
        assert!(is_sent(&mut answer(&limits, "a", CallClass::Status)).await);
    }
}
