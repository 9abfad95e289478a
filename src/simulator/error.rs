//! The error answers of ThingSpace, with each kind of body.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

pub(super) const JSON: &str = "application/json; charset=UTF-8";
pub(super) const HTML: &str = "text/html;charset=UTF-8";
const XML: &str = "application/xml; charset=UTF-8";

/// The API manager's answer to calls of unknown paths. Its code is not the HTTP status.
const XML_NOT_FOUND: &str = "<am:fault xmlns:am=\"http://wso2.org/apimanager\">\
    <am:code>404</am:code><am:type>Status report</am:type><am:message>Not Found</am:message>\
    <am:description>The requested resource is not available.</am:description></am:fault>";

/// An answer with a text. Without a text there is no content type.
#[derive(Debug, Clone)]
pub(super) struct TextAnswer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) text: String,
}

impl TextAnswer {
    /// HTTP 401 for a wrong key and for a wrong or expired bearer token.
    pub(super) fn invalid_credentials() -> Self {
        let description = "Access failure: invalid credentials";
        Self::fault(StatusCode::UNAUTHORIZED, "900901", "Invalid Credentials", description)
    }

    pub(super) fn missing_credentials() -> Self {
        let description = "Access failure: no credentials";
        Self::fault(StatusCode::UNAUTHORIZED, "900902", "Missing Credentials", description)
    }

    pub(super) fn throttled() -> Self {
        let message = "Message throttled out";
        let description = "You have exceeded your quota";
        Self::fault(StatusCode::TOO_MANY_REQUESTS, "900800", message, description)
    }

    /// HTTP 400 for an unknown resource of a known API.
    pub(super) fn no_resource(path: &str) -> Self {
        let message = "No matching resource found in the API for the given request";
        let description = format!("Access failure for API: {path}");
        Self::fault(StatusCode::BAD_REQUEST, "900906", message, &description)
    }

    /// "Wrong authentication": HTTP 403 with a body that says 404.
    pub(super) fn wrong_authentication() -> Self {
        Self { status: StatusCode::FORBIDDEN, content_type: XML, text: XML_NOT_FOUND.into() }
    }

    pub(super) fn not_available() -> Self {
        let text = "requested resource is not available".into();
        Self { status: StatusCode::NOT_FOUND, content_type: HTML, text }
    }

    /// An error of the API manager (WSO2) that receives the calls first.
    fn fault(status: StatusCode, code: &str, message: &str, description: &str) -> Self {
        let fault = json!({"code": code, "message": message, "description": description});
        Self::json(status, &json!({"fault": fault}))
    }

    pub(super) fn missing_grant_type() -> Self {
        let description = "Missing grant_type parameter value";
        let body = json!({"error_description": description, "error": "invalid_request"});
        Self::json(StatusCode::BAD_REQUEST, &body)
    }

    pub(super) fn unreadable() -> Self {
        Self::uws("DeserializationFailed", "The request could not be read.")
    }

    /// HTTP 400 with a code of UWS.
    pub(super) fn uws(code: impl AsRef<str>, message: &str) -> Self {
        let code = format!("UnifiedWebService.{}", code.as_ref());
        Self::json(StatusCode::BAD_REQUEST, &json!({"errorCode": code, "errorMessage": message}))
    }

    /// An error of the eSIM calls. The code is the HTTP status.
    pub(super) fn http(status: StatusCode, message: &str) -> Self {
        Self::json(status, &json!({"errorCode": status.as_str(), "errorMessage": message}))
    }

    pub(super) fn json(status: StatusCode, body: &Value) -> Self {
        Self { status, content_type: JSON, text: body.to_string() }
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn without_body(self) -> Self {
        Self { text: String::new(), ..self }
    }
}

impl IntoResponse for TextAnswer {
    fn into_response(self) -> Response {
        let Self { status, content_type, text } = self;
        if text.is_empty() {
            return status.into_response();
        }
        (status, [(header::CONTENT_TYPE, content_type)], text).into_response()
    }
}
