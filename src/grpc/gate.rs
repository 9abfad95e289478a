//! The outermost layer: lets only gRPC calls pass, before anything of them is read.
//!
//! - Another method than POST is answered with HTTP 405, another content type with 415, as the gRPC
//!   protocol says (PROTOCOL-HTTP2.md, "Requests"). So a web page cannot call: its content types
//!   that need no CORS preflight are refused.
//! - Headers above [`MAX_HEADER_LIST`] are answered with a status that gRPC clients understand.
//!   Clients read a bare HTTP 431 as UNKNOWN.
//! - A deadline (`grpc-timeout`) that cannot be read is answered with INTERNAL.
//!
//! A missing `te` is accepted, because no gRPC server needs it. Paths have no limit of their own.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::{Either, Empty};
use tower::Service;

use super::{deadline, status};

/// The limit of the headers of a call, in bytes, counted as in RFC 9113, section 6.5.2. Most gRPC
/// servers have 8 or 16 KiB. HTTP/2 itself must allow more, so that such a call gets here.
pub(super) const MAX_HEADER_LIST: usize = 16 << 10;

/// What a field costs besides its name and its value (RFC 9113, section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// The service that passes gRPC calls to the service `inner`.
#[derive(Debug, Clone)]
pub(crate) struct Gate<S> {
    inner: S,
}

impl<S> Gate<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, In, Out> Service<Request<In>> for Gate<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Out: Send + 'static,
{
    type Response = Response<Either<Out, Empty<Bytes>>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        if let Some(refusal) = refusal(&request) {
            return Box::pin(async { Ok(refusal.map(Either::Right)) });
        }
        let response = self.inner.call(request);
        Box::pin(async move { Ok(response.await?.map(Either::Left)) })
    }
}

fn refusal<B>(request: &Request<B>) -> Option<Response<Empty<Bytes>>> {
    let mut refusal = Response::new(Empty::new());
    if request.method() != Method::POST {
        *refusal.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(refusal);
    }
    if !is_grpc(request.headers()) {
        *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Some(refusal);
    }
    if header_list(request) > MAX_HEADER_LIST {
        return Some(status::metadata_too_large().into_http());
    }
    deadline::is_malformed(request.headers()).then(|| {
        let message = "grpc-timeout must be 1 to 8 digits and one of H, M, S, m, u and n";
        status::malformed(message).into_http()
    })
}

/// Whether the content type is gRPC with Protobuf, with or without parameters. Media types have any
/// case (RFC 9110, section 8.3.1).
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Ok(value) = value.to_str() else { return false };
    let media_type = value.split(';').next().unwrap_or_default().trim();
    ["application/grpc", "application/grpc+proto"]
        .iter()
        .any(|known| media_type.eq_ignore_ascii_case(known))
}

/// The size of a request's headers, with the pseudo-headers.
fn header_list<B>(request: &Request<B>) -> usize {
    let field = |name: &str, value: &str| name.len() + value.len() + FIELD_OVERHEAD;
    let uri = request.uri();
    let pseudo = field(":method", request.method().as_str())
        + field(":scheme", uri.scheme_str().unwrap_or_default())
        + field(":authority", uri.authority().map_or("", |authority| authority.as_str()))
        + field(":path", uri.path_and_query().map_or("", |path| path.as_str()));
    let each = |(name, value): (&http::HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + FIELD_OVERHEAD
    };
    pseudo + request.headers().iter().map(each).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &str, content_type: &[&str]) -> Request<()> {
        let mut call = Request::builder().method(method).uri("http://gateway/s/m");
        for value in content_type {
            call = call.header("content-type", *value);
        }
        call.body(()).unwrap()
    }

    fn answered(call: &Request<()>) -> u16 {
        refusal(call).map_or(0, |response| response.status().as_u16())
    }

    #[test]
    fn only_grpc_passes() {
        for passes in [
            "application/grpc",
            "application/grpc+proto",
            "Application/gRPC",
            "application/grpc; charset=utf-8",
            "application/grpc+proto ;a=b",
        ] {
            assert_eq!(answered(&call("POST", &[passes])), 0, "{passes}");
        }
        for refused in [
            "",
            "text/plain",
            "application/json",
            "application/grpc+json",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcx",
            "multipart/form-data; application/grpc",
            "é",
        ] {
            assert_eq!(answered(&call("POST", &[refused])), 415, "{refused}");
        }
        assert_eq!(answered(&call("POST", &[])), 415);
        assert_eq!(answered(&call("POST", &["text/plain", "application/grpc"])), 415);
        for method in ["GET", "PUT", "OPTIONS", "HEAD", "CONNECT", "post", "PRI"] {
            assert_eq!(answered(&call(method, &["application/grpc"])), 405, "{method}");
        }
    }

    /// A header list of exactly the limit passes.
    #[test]
    fn large_headers_are_answered_with_a_status() {
        let mut call = call("POST", &["application/grpc"]);
        let rest = MAX_HEADER_LIST - header_list(&call) - "x".len() - FIELD_OVERHEAD;
        call.headers_mut().insert("x", "v".repeat(rest).parse().unwrap());
        assert_eq!(header_list(&call), MAX_HEADER_LIST);
        assert!(refusal(&call).is_none());
        call.headers_mut().insert("x", "v".repeat(rest + 1).parse().unwrap());
        let refused = refusal(&call).unwrap();
        assert_eq!(
            (refused.status(), &refused.headers()["grpc-status"]),
            (StatusCode::OK, &"11".parse().unwrap())
        );
        let long_path = format!("http://gateway/{}", "p".repeat(MAX_HEADER_LIST));
        *call.uri_mut() = long_path.parse().unwrap();
        assert!(refusal(&call).is_some());
    }
}
