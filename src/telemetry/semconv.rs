//! The names of attributes in the OpenTelemetry semantic conventions 1.44.

pub(super) const SERVICE_NAME: &str = "service.name";
pub(super) const SERVICE_VERSION: &str = "service.version";

// The RPC conventions are a release candidate.
pub(super) const RPC_SYSTEM_NAME: &str = "rpc.system.name";
pub(super) const RPC_METHOD: &str = "rpc.method";
pub(super) const RPC_RESPONSE_STATUS_CODE: &str = "rpc.response.status_code";
pub(super) const ERROR_TYPE: &str = "error.type";
