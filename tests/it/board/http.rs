//! `board --listen`: what browsers, caches and hostile clients get.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use vote_aggregator::model::ports::{Store, Votes};

use super::{FILES, board, deploy, publish};
use crate::support::{
    Answer, PATIENCE, Servers, Service, Stage, eventually, eventually_within, exchange, listen,
    request, votes,
};

/// A board on a free port, and its address.
async fn listening(stage: &Stage<'_>, more: &[&str]) -> (Service, String) {
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let service = board(stage, &[&ports[..], more].concat()).await;
    let address = service.listens_for("listening for the board").await;
    (service, address)
}

async fn ask(address: &str, asked: &str, headers: &str) -> Answer {
    let answer = timeout(PATIENCE, exchange(address, asked, headers)).await;
    answer.expect("an answer in time").expect("an HTTP answer")
}

async fn until_shown(address: &str, text: &str) {
    eventually(text, async || {
        let answer = ask(address, "GET /results.json", "").await;
        answer.status == 200 && answer.body.contains(text)
    })
    .await;
}

/// The address of a file.
fn path(name: &str) -> String {
    format!("/{}", name.trim_end_matches("index.html"))
}

/// The addresses of the page's style, script and icon.
fn assets(page: &str) -> Vec<String> {
    let links = page.split('"').filter(|link| link.starts_with("assets/"));
    links.map(|link| format!("/{link}")).collect()
}

#[tokio::test]
async fn every_address_has_the_headers_of_its_kind_and_a_tag_by_which_it_is_not_sent_again() {
    let stage = Stage::with_roles(Servers::shared(), "boardhttp").await;
    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    publish(&stage, "counting", "'2020-01-01 00:00Z'").await;
    let (service, address) = listening(&stage, &["--laws", &deploy("laws.toml")]).await;
    until_shown(&address, "\"state\":\"counting\"").await;

    let page = ask(&address, "GET /", "").await.body;
    let assets = assets(&page);
    assert_eq!(assets.len(), 3, "{page}");
    for path in FILES.map(path).into_iter().chain(assets.iter().cloned()) {
        let answer = ask(&address, &format!("GET {path}?v=1"), "Cookie: a=b\r\n").await;
        assert_eq!(answer.status, 200, "{path}");
        let (kind, data) = match path.rsplit(['.', '/']).next() {
            Some("") => ("text/html; charset=utf-8", false),
            Some("json") => ("application/json", true),
            Some("csv") => ("text/csv; charset=utf-8", true),
            Some("css") => ("text/css; charset=utf-8", false),
            Some("svg") => ("image/svg+xml", false),
            _ => ("text/javascript; charset=utf-8", false),
        };
        let cached = if assets.contains(&path) {
            "public, max-age=31536000, immutable"
        } else {
            "public, max-age=2, s-maxage=2, stale-while-revalidate=1, stale-if-error=60"
        };
        let length = answer.body.len().to_string();
        for (name, value) in [
            ("content-type", Some(kind)),
            ("content-length", Some(length.as_str())),
            ("cache-control", Some(cached)),
            ("access-control-allow-origin", data.then_some("*")),
            ("x-content-type-options", Some("nosniff")),
            ("referrer-policy", Some("no-referrer")),
            ("set-cookie", None),
            ("vary", None),
        ] {
            assert_eq!(answer.header(name), value, "{path}: {}", answer.head);
        }
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(
            policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert!(answer.header("permissions-policy").is_some(), "{path}");
        assert!(answer.header("date").is_some(), "{path}");

        let etag = answer.header("etag").expect("a tag").to_owned();
        assert!(etag.len() == 18 && etag.starts_with('"'), "a strong one: {etag}");
        // The time of the last look changes it in between now and then.
        eventually("not sent again", async || {
            let etag = ask(&address, &format!("HEAD {path}"), "").await;
            let etag = etag.header("etag").expect("a tag").to_owned();
            let known = format!("If-None-Match: {etag}\r\n");
            let again = ask(&address, &format!("GET {path}"), &known).await;
            again.status == 304 && again.body.is_empty() && again.header("etag") == Some(&etag)
        })
        .await;
        let head = ask(&address, &format!("HEAD {path}"), "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert!(head.header("content-length").is_some_and(|length| length != "0"), "{path}");
    }

    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let refused = ask(&address, &format!("{method} /results.json"), "").await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    for path in ["/metrics", "/readyz", "/laws.toml", "/../results.json", "/final/1/results.json"] {
        let missing = ask(&address, &format!("GET {path}"), "").await;
        assert_eq!(missing.status, 404, "{path}");
        assert_eq!(missing.header("cache-control"), Some("no-store"));
        assert!(missing.header("content-security-policy").is_some(), "{path}");
    }
    service.stop().await;
}

/// A hostile or broken client costs a connection for two seconds.
#[tokio::test]
async fn slow_and_silent_clients_keep_no_other_from_its_answer() {
    const SILENT: usize = 2_000;
    let stage = Stage::with_roles(Servers::shared(), "boardslow").await;
    let (service, address) = listening(&stage, &["--max-connections", "400"]).await;
    until_shown(&address, "\"publication\":null").await;
    let before = service.memory();
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let mut stream = TcpStream::connect(&address).await.expect("accepted by the kernel");
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHo").await.expect("written");
        }
        silent.push(stream);
    }
    assert_eq!(ask(&address, "GET /", "").await.status, 200);
    let used = service.memory().saturating_sub(before) / 1024;
    assert!(used < 400 * 64, "{used} KiB for 400 connections");
    for mut stream in silent {
        let mut answer = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        closed.expect("closed in time").ok();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    }
    service.until_metric("board_connections", 0.0).await;

    // One that asks keeps its connection.
    let mut stream = TcpStream::connect(&address).await.expect("connected");
    for _ in 0..3 {
        stream.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{answer:?}");
        while !answer.ends_with(b"\r\n\r\n") {
            answer.rotate_left(1);
            answer[15] = stream.read_u8().await.expect("the rest of the headers");
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn what_is_withheld_disappears_from_the_port_within_ten_seconds() {
    let stage = Stage::with_roles(Servers::shared(), "boardplug").await;
    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    publish(&stage, "counting", "'2020-01-01 00:00Z'").await;
    let (service, address) = listening(&stage, &[]).await;
    until_shown(&address, "law-001").await;
    publish(&stage, "withheld", "'2020-01-01 00:00Z'").await;
    // --every and the time of a reading, which is 5 s at most.
    eventually_within(Duration::from_secs(10), "withheld", async || {
        !ask(&address, "GET /results.json", "").await.body.contains("law-001")
    })
    .await;
    for name in FILES {
        let answer = ask(&address, &format!("GET {}", path(name)), "").await;
        assert!(answer.status == 200 && !answer.body.contains("law-001"), "{name}");
    }
    service.stop().await;
}

#[tokio::test]
async fn before_the_first_reading_clients_are_told_to_come_back() {
    let stage = Stage::with_roles(Servers::shared(), "boardwaits").await;
    // Nothing listens there any longer.
    let (listener, port) = listen().await;
    drop(listener);
    let environment = stage.environment_with(&[("POSTGRES_PORT", port.as_str())]);
    let arguments = ["board", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let service = Service::spawn(&stage.queue, &arguments, &environment).await;
    let address = service.listens_for("listening for the board").await;
    for path in ["/", "/results.json"] {
        let answer = ask(&address, &format!("GET {path}"), "").await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("10")), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    service.until_logged("cannot be read").await;
    let admin = service.address().await;
    let ready = request(&admin, "/readyz").await.expect("an answer");
    assert!(ready.status == 503 && ready.header("cache-control") == Some("no-store"), "{ready:?}");
    assert_eq!(request(&admin, "/livez").await.expect("an answer").status, 200);
    service.stop().await;

    let taken = listen().await;
    let address = format!("127.0.0.1:{}", taken.1);
    stage
        .run("board", &["--listen", &address, "--admin", "127.0.0.1:0"])
        .await
        .assert(78, &["cannot listen on", "for the board", "Set --listen"]);
}

/// All that an answer tells before its time is the time.
#[tokio::test]
async fn answers_are_the_same_whatever_is_counted_until_results_are_public() {
    let few = Stage::with_roles(Servers::shared(), "boardequalfew").await;
    let many = Stage::with_roles(Servers::shared(), "boardequalmany").await;
    few.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    many.store().await.count(Votes::new(votes(0, 2_000))).await.expect("counted");
    for stage in [&few, &many] {
        publish(stage, "counting", "'2099-01-01 00:00Z'").await;
    }
    let laws = deploy("laws.toml");
    let mut boards = Vec::new();
    for stage in [&few, &many] {
        boards.push(listening(stage, &["--laws", &laws]).await);
    }
    for state in ["embargoed", "withheld"] {
        if state == "withheld" {
            for stage in [&few, &many] {
                publish(stage, "withheld", "'2020-01-01 00:00Z'").await;
            }
        }
        for (_, address) in &boards {
            until_shown(address, &format!("\"state\":\"{state}\"")).await;
        }
        for name in FILES {
            // But for the time of the answer; the time of the last look is in steps of ten seconds.
            let ask = async |number: usize| {
                let answer = ask(&boards[number].1, &format!("GET {}", path(name)), "").await;
                let lines = answer.head.lines().filter(|line| !line.starts_with("date: "));
                (lines.map(str::to_owned).collect::<Vec<_>>(), answer.body)
            };
            eventually(name, async || ask(0).await == ask(1).await).await;
        }
        let scrape = async |number: usize| {
            let scrape = boards[number].0.get("/metrics").await.body;
            let is_time = |line: &str| line.contains("_age_") || line.contains("_skew_");
            // Which the test itself sends.
            let is_count = |line: &str| line.starts_with("board_requests_total{");
            let lines = scrape.lines().filter(|line| !is_time(line) && !is_count(line));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        eventually("the same metrics", async || scrape(0).await == scrape(1).await).await;
    }
    for (service, _) in boards {
        service.stop().await;
    }
}
