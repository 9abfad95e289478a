//! The pages of the listener for probes.

use std::net::SocketAddr;

use reqwest::{StatusCode, header::HeaderMap};

use super::{assert_discloses_nothing, within};

/// A page, which discloses nothing.
#[derive(Debug)]
pub struct Page {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

/// Gets a page, such as `/metrics` or `/status`. Its body must disclose nothing.
pub async fn page_of(admin: SocketAddr, path: &str, accept: &str) -> Page {
    // Probes and scrapers may open a connection for each request.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let request = http.get(format!("http://{admin}{path}")).header("accept", accept);
    let answer = within("a page", request.send()).await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = within("the rest of a page", answer.text()).await.unwrap();
    assert_discloses_nothing(body.lines());
    Page { status, headers, body }
}
