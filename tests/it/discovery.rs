//! What a caller finds with only the address: reflection and health.

use prost::Message;
use prost_types::{FileDescriptorProto, MethodDescriptorProto};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::*;

const SERVICE: &str = "thingspace.esim.v1.EsimService";

/// The descriptor of the file with the service, including its comments.
fn check_descriptor(files: &[Vec<u8>]) {
    let files: Vec<_> =
        files.iter().map(|file| FileDescriptorProto::decode(&file[..]).unwrap()).collect();
    let file = files
        .iter()
        .find(|file| file.package() == "thingspace.esim.v1")
        .expect("the service's file");
    let methods: Vec<_> = file.service[0].method.iter().map(MethodDescriptorProto::name).collect();
    assert_eq!(methods, ["DownloadProfile", "GetRequestStatus", "WatchRequest"]);
    let locations = &file.source_code_info.as_ref().expect("source info").location;
    // Services (6), methods (2), messages (4) and fields (2) all have comments.
    let comment = |path: &[i32]| {
        let location = locations.iter().find(|location| location.path == path);
        location.is_some_and(|location| !location.leading_comments().trim().is_empty())
    };
    assert!(comment(&[6, 0]));
    assert!((0..).zip(&file.service[0].method).all(|(at, _)| comment(&[6, 0, 2, at])));
    for (at, message) in (0..).zip(&file.message_type) {
        assert!(comment(&[4, at]), "{}", message.name());
        for (field, described) in (0..).zip(&message.field) {
            assert!(comment(&[4, at, 2, field]), "{}.{}", message.name(), described.name());
        }
    }
}

/// The two versions of reflection have the same messages under different names.
macro_rules! reflection {
    ($version:ident) => {
        #[tokio::test]
        async fn $version() {
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let upstream = Upstream::manual().await;
            let gateway = upstream.gateway().await;
            let mut client = ServerReflectionClient::new(channel(gateway.address).await);
            let questions = [
                MessageRequest::ListServices(String::new()),
                MessageRequest::FileContainingSymbol(SERVICE.to_owned()),
                MessageRequest::FileContainingSymbol("google.rpc.BadRequest".to_owned()),
            ];
            let questions = questions.map(|question| ServerReflectionRequest {
                host: String::new(),
                message_request: Some(question),
            });
            let asked = client.server_reflection_info(tokio_stream::iter(questions));
            let mut answers = within("reflection", asked).await.unwrap().into_inner();
            let mut answer = async || {
                within("an answer", answers.message())
                    .await
                    .unwrap()
                    .unwrap()
                    .message_response
                    .unwrap()
            };
            let MessageResponse::ListServicesResponse(list) = answer().await else {
                panic!("no list")
            };
            let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
            assert!(
                names.contains(&SERVICE) && names.contains(&"grpc.health.v1.Health"),
                "{names:?}"
            );
            let MessageResponse::FileDescriptorResponse(files) = answer().await else {
                panic!("no files")
            };
            check_descriptor(&files.file_descriptor_proto);
            // Without this type, grpcurl shows the details of an error as base64.
            let MessageResponse::FileDescriptorResponse(_) = answer().await else {
                panic!("no details")
            };
            drop((answers, client));
            gateway.stop().await;
        }
    };
}

mod reflection {
    use super::*;

    reflection!(v1);
    reflection!(v1alpha);
}

#[tokio::test]
async fn reflection_can_be_switched_off() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    };
    let upstream = Upstream::manual().await;
    let mut config = upstream.config();
    config.grpc.reflection = false;
    let gateway = Gateway::start(config).await;
    let mut client = ServerReflectionClient::new(channel(gateway.address).await);
    let question = tokio_stream::once(ServerReflectionRequest::default());
    let status = within("a refusal", client.server_reflection_info(question)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    gateway.stop().await;
}

#[tokio::test]
async fn health() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = HealthClient::new(channel(gateway.address).await);
    for service in ["", SERVICE] {
        // The gateway answers health checks before it is ready.
        eventually("it serves", || {
            let request = HealthCheckRequest { service: service.to_owned() };
            let mut client = client.clone();
            async move {
                client.check(request).await.unwrap().into_inner().status() == ServingStatus::Serving
            }
        })
        .await;
    }
    let unknown = HealthCheckRequest { service: "thingspace.esim.v2.EsimService".to_owned() };
    assert_eq!(client.check(unknown).await.unwrap_err().code(), Code::NotFound);
    gateway.stop().await;
}

#[tokio::test]
async fn health_during_a_drain() {
    let upstream = Upstream::manual().await;
    let gateway = upstream.gateway().await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", [1]).await.unwrap();
    let mut health = HealthClient::new(channel(gateway.address).await);
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let mut said = within("health", health.watch(request)).await.unwrap().into_inner();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    watching.event().await;
    gateway.stop.soft.cancel();
    while within("health", said.message()).await.unwrap().unwrap().status()
        != ServingStatus::NotServing
    {}
    drop((said, health, watching, client));
    gateway.stop().await;
}
