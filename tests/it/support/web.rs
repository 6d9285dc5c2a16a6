//! HTTP as a browser's or a program's client sees it: status, headers, body.

use std::collections::BTreeMap;

use serde_json::Value;

use super::PATIENCE;

/// An answer. Names of headers are in lower case.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Page {
    /// The value of a header; empty without it.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Asks once, on a connection of its own.
pub async fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> Page {
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request.body(String::new()).expect("a request")).await
}

pub async fn get(url: &str) -> Page {
    ask("GET", url, &[]).await
}

/// A request with a JSON body.
pub async fn post(url: &str, body: &Value) -> Page {
    send(http::Request::post(url).body(body.to_string()).expect("a request")).await
}

async fn send(request: http::Request<String>) -> Page {
    let what = format!("{} {}", request.method(), request.uri());
    let sent = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).proxy(None);
        let agent =
            agent.http_status_as_error(false).max_redirects(0).allow_non_standard_methods(true);
        let mut answer = agent.build().new_agent().run(request)?;
        let headers = answer.headers().iter().map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let (status, headers) = (answer.status().as_u16(), headers.collect());
        // A screenshot is larger than ureq's limit may be.
        let body = answer.body_mut().with_config().limit(64 << 20).read_to_vec()?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok::<_, ureq::Error>(Page { status, headers, body })
    });
    sent.await.expect("no panic").unwrap_or_else(|error| panic!("{what}: {error}"))
}
