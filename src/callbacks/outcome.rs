//! What becomes of requests to the listener, and how they are answered.

use http::StatusCode;

/// What became of a request to the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    Quarantined,
    UnknownPath,
    WrongMethod,
    TooLarge,
    /// Its body ended too early.
    Broken,
    /// Its body did not arrive in time, or not before others that needed its place.
    TooSlow,
    WrongPair,
    TooMany,
    /// Not understood and not proved, like too many others before.
    NotKept,
    NotStored,
}

impl Outcome {
    pub const ALL: [Self; 11] = [
        Self::Stored,
        Self::Quarantined,
        Self::UnknownPath,
        Self::WrongMethod,
        Self::TooLarge,
        Self::Broken,
        Self::TooSlow,
        Self::WrongPair,
        Self::TooMany,
        Self::NotKept,
        Self::NotStored,
    ];

    /// For operators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Quarantined => "quarantined",
            Self::UnknownPath => "unknown_path",
            Self::WrongMethod => "wrong_method",
            Self::TooLarge => "too_large",
            Self::Broken => "broken",
            Self::TooSlow => "too_slow",
            Self::WrongPair => "wrong_pair",
            Self::TooMany => "too_many",
            Self::NotKept => "not_kept",
            Self::NotStored => "not_stored",
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Stored | Self::Quarantined => StatusCode::OK,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken => StatusCode::BAD_REQUEST,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::WrongPair => StatusCode::UNAUTHORIZED,
            Self::TooMany | Self::NotKept | Self::NotStored => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}
