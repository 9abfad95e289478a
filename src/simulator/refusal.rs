//! How ThingSpace says no: each of its error bodies.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

pub(super) const JSON: &str = "application/json; charset=UTF-8";
pub(super) const HTML: &str = "text/html;charset=UTF-8";
const XML: &str = "application/xml; charset=UTF-8";

/// A call that is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// The API gateway in front (WSO2).
    Fault {
        code: u32,
        message: &'static str,
        description: String,
    },
    /// UWS: `UnifiedWebService.` and the code.
    Uws {
        code: String,
        message: &'static str,
    },
    /// The eSIM pages: the HTTP status once more.
    Http {
        message: &'static str,
    },
    OAuth {
        error: &'static str,
        description: &'static str,
    },
    /// The API gateway's, on calls that it cannot even place: in XML, with a code that is not the
    /// HTTP status.
    Xml {
        code: u16,
        message: &'static str,
    },
    Page(&'static str),
    Nothing,
}

/// A refusal as it goes over the wire. Without a body there is no type either.
pub(super) struct Written {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Refusal {
    fn new(status: StatusCode, body: Body) -> Self {
        Self { status, body }
    }

    /// HTTP 401 for a wrong key, and for a wrong or expired bearer: they cannot be told apart.
    pub(super) fn invalid_credentials() -> Self {
        Self::fault(
            StatusCode::UNAUTHORIZED,
            900_901,
            "Invalid Credentials",
            "Access failure: invalid credentials",
        )
    }

    pub(super) fn missing_credentials() -> Self {
        Self::fault(
            StatusCode::UNAUTHORIZED,
            900_902,
            "Missing Credentials",
            "Access failure: no credentials",
        )
    }

    pub(super) fn throttled() -> Self {
        Self::fault(
            StatusCode::TOO_MANY_REQUESTS,
            900_800,
            "Message throttled out",
            "You have exceeded your quota",
        )
    }

    /// A known API, but no such resource in it.
    pub(super) fn no_resource(path: &str) -> Self {
        let message = "No matching resource found in the API for the given request";
        Self::fault(
            StatusCode::BAD_REQUEST,
            900_906,
            message,
            &format!("Access failure for API: {path}"),
        )
    }

    /// "Wrong authentication": HTTP 403, of which the body says 404.
    pub(super) fn wrong_authentication() -> Self {
        Self::new(StatusCode::FORBIDDEN, Body::Xml { code: 404, message: "Not Found" })
    }

    pub(super) fn not_available() -> Self {
        Self::new(StatusCode::NOT_FOUND, Body::Page("requested resource is not available"))
    }

    fn fault(status: StatusCode, code: u32, message: &'static str, description: &str) -> Self {
        Self::new(status, Body::Fault { code, message, description: description.to_owned() })
    }

    pub(super) fn oauth(error: &'static str, description: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Body::OAuth { error, description })
    }

    /// HTTP 400 and a code of UWS.
    pub(super) fn uws(code: impl Into<String>, message: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Body::Uws { code: code.into(), message })
    }

    pub(super) fn http(status: StatusCode, message: &'static str) -> Self {
        Self::new(status, Body::Http { message })
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn without_body(self) -> Self {
        Self { body: Body::Nothing, ..self }
    }

    pub(super) fn respond(self, numeric_codes: bool) -> Response {
        self.written(numeric_codes).into_response()
    }

    pub(super) fn written(self, numeric_codes: bool) -> Written {
        let status = self.status;
        let written = |content_type, body| Written { status, content_type, body };
        let json = |body: Value| written(JSON, body.to_string());
        let number = |code: u32| if numeric_codes { json!(code) } else { json!(code.to_string()) };
        match self.body {
            Body::Fault { code, message, description } => json(
                json!({"fault": {"code": number(code), "message": message, "description": description}}),
            ),
            Body::Uws { code, message } => json(
                json!({"errorCode": format!("UnifiedWebService.{code}"), "errorMessage": message}),
            ),
            Body::Http { message } => {
                json(json!({"errorCode": number(status.as_u16().into()), "errorMessage": message}))
            }
            Body::OAuth { error, description } => {
                json(json!({"error_description": description, "error": error}))
            }
            Body::Xml { code, message } => written(
                XML,
                format!(
                    "<am:fault xmlns:am=\"http://wso2.org/apimanager\"><am:code>{code}</am:code>\
                     <am:type>Status report</am:type><am:message>{message}</am:message>\
                     <am:description>The requested resource is not available.</am:description></am:fault>"
                ),
            ),
            Body::Page(text) => written(HTML, text.to_owned()),
            Body::Nothing => written("", String::new()),
        }
    }
}

impl IntoResponse for Written {
    fn into_response(self) -> Response {
        let Self { status, content_type, body } = self;
        if body.is_empty() {
            return status.into_response();
        }
        (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
    }
}
