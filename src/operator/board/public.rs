//! The public port: the files from memory, with the headers that caches and browsers need. No request reads anything
//! but what was made before, and none is logged.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    HeaderName, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::files::{File, Kind};
use super::page::{digest, notice};

/// On every answer. The page has nothing inline, and takes nothing from elsewhere.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ),
];
/// Hexadecimal digits of an ETag.
const ETAG_DIGITS: usize = 16;
/// Seconds after which to ask again while nothing was read yet.
const RETRY_SECONDS: &str = "10";

/// What the port answers with.
#[derive(Clone, Debug)]
pub struct Public(watch::Sender<Arc<Site>>);

/// `None` before the first reading.
type Site = Option<Ready>;

#[derive(Debug)]
struct Ready {
    answers: BTreeMap<String, Answer>,
    /// Results are public from then on.
    opens: Option<OffsetDateTime>,
}

#[derive(Debug)]
struct Answer {
    kind: Kind,
    etag: HeaderValue,
    lifetime: Lifetime,
    content: Bytes,
}

/// How long caches may keep an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lifetime {
    /// It changes.
    Seconds,
    /// Its name changes with its content.
    Year,
}

impl Default for Public {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::new(None)))
    }
}

impl Public {
    /// Answers with these files from now on; caches keep none of them beyond `opens`.
    pub fn show(&self, files: Vec<File>, opens: Option<OffsetDateTime>) {
        let answers = files.into_iter().map(|File { name, kind, content }| {
            let lifetime = match name.split_once('/') {
                Some(("assets", _)) => Lifetime::Year,
                _ => Lifetime::Seconds,
            };
            // Quotation marks and digits only.
            let etag = HeaderValue::from_str(&format!("\"{}\"", digest(&content, ETAG_DIGITS)))
                .unwrap_or(HeaderValue::from_static("\"\""));
            (path(&name), Answer { kind, etag, lifetime, content })
        });
        self.0.send_replace(Arc::new(Some(Ready { answers: answers.collect(), opens })));
    }

    /// The answer to a request at `now`. Query strings are ignored, so that none gets past a cache.
    pub fn answer<B>(&self, request: &Request<B>, now: OffsetDateTime) -> Response<Body> {
        let mut response = self.respond(request, now);
        for (name, value) in HEADERS {
            response.headers_mut().insert(name, value);
        }
        response
    }

    fn respond<B>(&self, request: &Request<B>, now: OffsetDateTime) -> Response<Body> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut refusal = page(
                StatusCode::METHOD_NOT_ALLOWED,
                &notice("Méthode non autorisée.", "Method not allowed"),
            );
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let site = Arc::clone(&self.0.borrow());
        let Some(ready) = &*site else {
            let text = notice(
                "Les résultats ne peuvent pas être lus pour l'instant. Réessayez dans quelques secondes.",
                "The results cannot be read yet. Try again in a few seconds.",
            );
            let mut later = page(StatusCode::SERVICE_UNAVAILABLE, &text);
            later.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
            return later;
        };
        match ready.answers.get(request.uri().path()) {
            Some(answer) => answer.respond(request, ready.opens.map(|opens| opens - now)),
            None => page(StatusCode::NOT_FOUND, &notice("Page introuvable.", "Page not found")),
        }
    }
}

impl Answer {
    fn respond<B>(&self, request: &Request<B>, left: Option<time::Duration>) -> Response<Body> {
        let known = request.headers().get_all(IF_NONE_MATCH).into_iter();
        let mut known = known.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
        // A proxy that compresses makes the tag a weak one.
        let etag = self.etag.as_bytes();
        let is_known = known.any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag
        });
        let (status, body) = if is_known {
            (StatusCode::NOT_MODIFIED, Body::empty())
        } else {
            (StatusCode::OK, Body::from(self.content.clone()))
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(ETAG, self.etag.clone());
        headers.insert(CACHE_CONTROL, self.lifetime.cache_control(left));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind.media_type()));
        if self.kind.is_data() {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        response
    }
}

impl Lifetime {
    /// With `left` until results are public, nothing is kept beyond that time.
    fn cache_control(self, left: Option<time::Duration>) -> HeaderValue {
        match (self, left.map(time::Duration::whole_seconds).filter(|left| *left >= 0)) {
            (Self::Year, _) => HeaderValue::from_static("public, max-age=31536000, immutable"),
            (Self::Seconds, None) => HeaderValue::from_static(
                "public, max-age=2, s-maxage=2, stale-while-revalidate=1, stale-if-error=60",
            ),
            (Self::Seconds, Some(left)) => {
                let fresh = left.min(2);
                let (revalidate, error) = ((left - fresh).min(1), (left - fresh).min(60));
                let value = format!(
                    "public, max-age={fresh}, s-maxage={fresh}, \
                     stale-while-revalidate={revalidate}, stale-if-error={error}"
                );
                // Digits and words only.
                HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("no-store"))
            }
        }
    }
}

/// The path of a file in an address.
fn path(name: &str) -> String {
    format!("/{}", name.strip_suffix("index.html").unwrap_or(name))
}

/// A short page that no cache keeps.
fn page(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(Kind::Html.media_type()));
    response
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const EIGHT: OffsetDateTime = datetime!(2026-11-29 19:00 UTC);

    #[test]
    fn caches_keep_nothing_beyond_the_opening() {
        let at = |seconds| {
            let left = Some(time::Duration::seconds(seconds));
            let value = Lifetime::Seconds.cache_control(left);
            value.to_str().expect("text").to_owned()
        };
        let public = "public, max-age=2, s-maxage=2, stale-while-revalidate=1, stale-if-error=60";
        assert_eq!((at(-1).as_str(), at(3_600).as_str()), (public, public));
        for left in 0..70 {
            let numbers = at(left);
            let numbers = numbers.split(['=', ',']).filter_map(|it| it.parse::<i64>().ok());
            let [fresh, shared, revalidate, error] = numbers.collect::<Vec<_>>()[..] else {
                panic!("four numbers")
            };
            assert_eq!(fresh, shared);
            assert!(fresh + revalidate.max(error) <= left && fresh == left.min(2), "{left}");
        }
    }

    #[test]
    fn a_tag_that_is_known_is_not_sent_again() {
        let public = Public::default();
        let get = |path: &str, tags: &str| {
            let request = Request::get(path).header(IF_NONE_MATCH, tags).body(()).expect("valid");
            public.answer(&request, EIGHT)
        };
        assert_eq!(get("/results.json", "").status(), StatusCode::SERVICE_UNAVAILABLE);
        let content = Bytes::from_static(b"{}");
        let file =
            |name: &str| File { name: name.to_owned(), kind: Kind::Json, content: content.clone() };
        public.show(vec![file("results.json"), file("fr/index.html")], None);
        let etag = get("/results.json?x=1", "\"other\"").headers()[ETAG].clone();
        let etag = etag.to_str().expect("text");
        assert_eq!(etag, "\"44136fa355b3678a\"", "the SHA-256 of {{}}");
        for (tags, status) in [
            (etag.to_owned(), 304),
            (format!("\"x\", W/{etag}"), 304),
            ("*".to_owned(), 304),
            (etag.trim_matches('"').to_owned(), 200),
        ] {
            assert_eq!(get("/results.json", &tags).status().as_u16(), status, "{tags}");
        }
        assert_eq!(get("/fr/", "").status(), StatusCode::OK);
        for path in ["/fr/index.html", "/fr", "/metrics", "/.board.lock"] {
            assert_eq!(get(path, "").status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
