//! The stored bytes.
