//! Every error has a reason, also if the call does not reach the service.

use std::process::Command;

use thingspace_gateway::proto::esim::{
    DeviceCounts, DownloadProfileRequest, DownloadProfileResponse,
};
use tonic::{
    Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;

use crate::{
    dev::path_with_grpcurl,
    harness::*,
    process::{run, text},
};

const DOWNLOAD: &str = "/thingspace.esim.v1.EsimService/DownloadProfile";

/// The status with which a call of a method with this message fails.
async fn refused<M: prost::Message + 'static>(
    channel: &Channel,
    path: &'static str,
    message: M,
    encoding: &'static str,
) -> Status {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-encoding", encoding.parse().unwrap());
    let codec = ProstCodec::<M, DownloadProfileResponse>::default();
    let call = client.unary(request, PathAndQuery::from_static(path), codec);
    within("a refusal", call).await.unwrap_err()
}

#[tokio::test]
async fn a_call_that_never_reaches_the_service() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let channel = channel(gateway.address).await;
    let order = || DownloadProfileRequest::default();
    let large = DownloadProfileRequest { service_plan: "x".repeat(5 << 20), ..order() };
    // The first field is a number, but in an order it is a text.
    let garbage = DeviceCounts { total: 1, ..DeviceCounts::default() };
    let nobody = HealthCheckRequest { service: "nobody".to_owned() };
    let cases = [
        (
            "a method",
            refused(&channel, "/thingspace.esim.v1.EsimService/Nothing", order(), "identity").await,
            (Code::Unimplemented, "UNKNOWN_METHOD"),
        ),
        (
            "a service",
            refused(
                &channel,
                "/thingspace.esim.v2.EsimService/DownloadProfile",
                order(),
                "identity",
            )
            .await,
            (Code::Unimplemented, "UNKNOWN_METHOD"),
        ),
        (
            "a path",
            refused(&channel, "/", order(), "identity").await,
            (Code::Unimplemented, "UNKNOWN_METHOD"),
        ),
        (
            "compression",
            refused(&channel, DOWNLOAD, order(), "gzip").await,
            (Code::Unimplemented, "UNKNOWN_METHOD"),
        ),
        (
            "a large message",
            refused(&channel, DOWNLOAD, large, "identity").await,
            (Code::OutOfRange, "MESSAGE_TOO_LARGE"),
        ),
        (
            "another message",
            refused(&channel, DOWNLOAD, garbage, "identity").await,
            (Code::Internal, "MALFORMED_CALL"),
        ),
        (
            "an unknown service's health",
            within("a refusal", HealthClient::new(channel).check(nobody)).await.unwrap_err(),
            (Code::NotFound, "UNKNOWN_METHOD"),
        ),
    ];
    for (what, status, (code, reason)) in cases {
        assert_eq!(kind(&status), (code, reason.to_owned()), "{what}: {status:?}");
        assert!(!status.message().is_empty(), "{what}");
    }
    gateway.stop().await;
}

/// Reflection also serves the types of error details, so that generic clients show them.
#[tokio::test]
async fn grpcurl_shows_the_reason() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut grpcurl = Command::new("grpcurl");
    grpcurl
        .args(["-plaintext", "-d", r#"{"service": "nobody"}"#, &gateway.address.to_string()])
        .arg("grpc.health.v1.Health/Check")
        .env("PATH", path_with_grpcurl());
    let output = run(grpcurl).await;
    let said = text(&output.stderr);
    assert!(
        said.contains("Code: NotFound") && said.contains(r#""reason":"UNKNOWN_METHOD""#),
        "{said}"
    );
    gateway.stop().await;
}
