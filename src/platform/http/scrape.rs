//! The answer to `/metrics`: rendered at most once a second, shared by all who ask.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::Instant;

use crate::platform::telemetry::MetricsError;

/// How long a rendering is served: with 1,000 laws it takes 10 ms.
const MAX_AGE: Duration = Duration::from_secs(1);
/// Answers with a body in each period of [`MAX_AGE`]. Each may wait in memory until its connection
/// times out, so that this bounds those as well.
const FULL_ANSWERS: u32 = 50;

/// The last rendering of the metrics.
#[derive(Debug, Default)]
pub struct Scrape(Mutex<Option<Rendered>>);

#[derive(Debug)]
struct Rendered {
    at: Instant,
    text: Bytes,
    /// Full answers that are left for this rendering.
    left: u32,
}

impl Scrape {
    /// The metrics, not older than a second; 503 when too many asked for them in this second.
    pub fn answer(&self, render: impl FnOnce() -> Result<String, MetricsError>) -> Response {
        match self.text(render) {
            Ok(Some(text)) => {
                let text_format = "text/plain; version=0.0.4; charset=utf-8";
                ([(header::CONTENT_TYPE, text_format)], text).into_response()
            }
            Ok(None) => {
                let retry = [(header::RETRY_AFTER, "1")];
                (StatusCode::SERVICE_UNAVAILABLE, retry, "too many scrapes\n").into_response()
            }
            Err(error) => {
                tracing::error!(%error, "the metrics cannot be encoded");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }

    /// The rendering to answer with; `None` when it was served too often.
    fn text(
        &self,
        render: impl FnOnce() -> Result<String, MetricsError>,
    ) -> Result<Option<Bytes>, MetricsError> {
        // Held while rendering: the others on this thread could not go on meanwhile in any case.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match &mut *kept {
            Some(current) if current.at.elapsed() < MAX_AGE => current,
            old => {
                let text = Bytes::from(render()?);
                old.insert(Rendered { at: Instant::now(), text, left: FULL_ANSWERS })
            }
        };
        let Some(left) = current.left.checked_sub(1) else { return Ok(None) };
        current.left = left;
        Ok(Some(current.text.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rendering_serves_a_second_and_a_bounded_number_of_scrapes() {
        let scrape = Scrape::default();
        let mut rendered = 0;
        let mut ask = || {
            scrape.text(|| {
                rendered += 1;
                Ok(rendered.to_string())
            })
        };
        for second in 1..=3 {
            for _ in 0..FULL_ANSWERS {
                let text = ask().expect("rendered").expect("served");
                assert_eq!(text, second.to_string(), "one rendering a second");
            }
            assert!(ask().expect("rendered").is_none(), "the bound is reached");
            tokio::time::advance(MAX_AGE - Duration::from_millis(1)).await;
            assert!(ask().expect("rendered").is_none(), "the second is not over");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    }
}
