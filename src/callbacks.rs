//! ThingSpace's callbacks: taken in, proved, made durable, answered.

pub mod parse;
pub mod registration;
pub mod secrets;
