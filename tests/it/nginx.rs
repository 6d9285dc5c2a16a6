//! The shipped files for nginx, in Debian's nginx: which headers and which page the public gets, also without a board.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use vote_aggregator::operator::board::{self, Folder};

use crate::browser::{Board, PAST, counted, publish};
use crate::support::repository::{ROOT, read, run};
use crate::support::web::{ask, get, post};
use crate::support::{
    Authority, Files, Servers, Stage, Validity, assert_lacks, eventually, eventually_within, listen,
};

const PAGES: [&str; 3] = ["/", "/fr/", "/en/"];
/// In the data.
const PROVISIONAL: &str = "\"state\":\"provisional\"";
/// What one answer takes on a busy machine.
const A_STEP: Duration = Duration::from_secs(2);
/// Also in a page without its digits.
const WITHHELD: &str = "Results not published";

/// A web server with one of the shipped files, ended with this value.
pub struct Nginx {
    pub url: String,
    /// The folder that it serves, and the file that takes everything off the page.
    files: Files,
    _child: Child,
}

impl Nginx {
    /// With `deploy/nginx/NAME`; `board` is the address of what a proxy asks.
    pub async fn start(name: &str, board: &str) -> Self {
        let files = Files::new("nginx");
        fs::create_dir_all(files.join("out")).expect("a folder");
        let (listener, port) = listen().await;
        drop(listener);
        let shipped = shipped(name, &files, board);
        let shipped = shipped.replacen("listen 443 ssl;", &format!("listen 127.0.0.1:{port};"), 1);
        let is_tls = |line: &&str| line.contains("ssl_certificate") || line.contains("443");
        let shipped: Vec<&str> = shipped.lines().filter(|line| !is_tls(line)).collect();
        let mut command = Command::new(program());
        command.args(arguments(&files, &shipped.join("\n"))).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(files.join("log")).expect("a log file"));
        let child = command.spawn().expect("nginx runs");
        let address = format!("127.0.0.1:{port}");
        eventually("nginx listens", async || TcpStream::connect(&address).await.is_ok()).await;
        Self { url: format!("http://{address}"), files, _child: child }
    }

    /// The folder that `board --out` writes into.
    pub fn folder(&self) -> String {
        self.files.file("out")
    }

    /// What an operator does to take the numbers off the page.
    pub fn withhold(&self) {
        self.files.write("board-withheld", "");
    }
}

fn program() -> String {
    run("script/services", &["nginx"]).assert(0, &[]).stdout.trim().to_owned()
}

/// A shipped file with the paths of a test.
fn shipped(name: &str, files: &Files, board: &str) -> String {
    let mut text = read(format!("deploy/nginx/{name}"));
    for (path, here) in [
        ("/usr/share/vote-aggregator/nginx", format!("{ROOT}/deploy/nginx")),
        ("/etc/nginx/board", files.file("board")),
        ("/var/lib/vote-aggregator-board", files.file("out")),
        ("/var/cache/nginx/board", files.file("cache")),
        ("127.0.0.1:8080", board.to_owned()),
    ] {
        text = text.replace(path, &here);
    }
    text
}

/// The command line of an nginx whose files are all below a test's own.
fn arguments(files: &Files, site: &str) -> [String; 4] {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {};", files.file(name)));
    let configuration = format!(
        "daemon off; master_process off; error_log stderr; pid {};\nevents {{}}\nhttp {{\n{}\n{site}\n}}\n",
        files.file("pid"),
        temporary.join("\n")
    );
    let file = files.write("nginx.conf", configuration);
    ["-c".to_owned(), file, "-p".to_owned(), files.path()]
}

/// As it is shipped, with TLS on the port for it.
#[test]
fn nginx_accepts_the_shipped_files() {
    for name in ["board.conf", "board-proxy.conf"] {
        let files = Files::new("nginxtest");
        fs::create_dir_all(files.join("out")).expect("a folder");
        let identity = Authority::new("web").issue("results.example.org", Validity::Today);
        files.write("board.pem", identity.certificate);
        files.write("board.key", identity.key);
        let [c, file, p, prefix] = arguments(&files, &shipped(name, &files, "127.0.0.1:8080"));
        let checked = run(program(), &["-t", &c, &file, &p, &prefix]);
        let checked = checked.assert(0, &["test is successful"]);
        assert_lacks(&checked.stderr, &["warn"]);
        let packed = "[\"deploy/nginx/*\", \"usr/share/vote-aggregator/nginx/\"";
        assert!(read("Cargo.toml").contains(packed), "{packed}");
    }
}

#[tokio::test]
async fn without_the_boards_files_a_page_says_so_and_a_file_is_missing() {
    let nginx = Nginx::start("board.conf", "").await;
    for page in PAGES {
        let shown = get(&format!("{}{page}", nginx.url)).await;
        assert_eq!(
            shown.status, 200,
            "{page}: clients go on asking, caches replace what they have"
        );
        assert!(shown.body.contains(WITHHELD) && shown.body.contains("lang=\"fr\""), "{page}");
        assert_eq!(shown.header("content-type"), "text/html; charset=utf-8");
        assert!(shown.header("content-security-policy").starts_with("default-src 'none'"));
    }
    for path in
        ["/results.json", "/assets/0123456789ab.css", "/final/1/results.csv", "/.board.lock"]
    {
        let missing = get(&format!("{}{path}", nginx.url)).await;
        assert_eq!(missing.status, 404, "{path}");
        assert_eq!(missing.header("cache-control"), "no-store", "{path}");
        assert_eq!(missing.header("x-content-type-options"), "nosniff", "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let refused = ask(method, &nginx.url, &[]).await;
        assert_eq!((refused.status, refused.header("allow")), (405, "GET, HEAD"), "{method}");
    }
}

/// In one command, whatever the board does.
#[tokio::test]
async fn a_file_takes_every_number_off_the_page() {
    let nginx = Nginx::start("board.conf", "").await;
    for name in ["index.html", "results.json"] {
        fs::write(format!("{}/{name}", nginx.folder()), "4711 votes").expect("written");
    }
    let paths = ["/", "/results.json"].map(|path| format!("{}{path}", nginx.url));
    for path in &paths {
        assert_eq!(get(path).await.body, "4711 votes");
    }
    nginx.withhold();
    let [page, json] = [get(&paths[0]).await, get(&paths[1]).await];
    assert_eq!((page.status, json.status), (200, 404));
    assert!(page.body.contains(WITHHELD), "{}", page.body);
    assert_lacks(&(page.body + &json.body), &["4711"]);
}

/// nginx makes an ETag of a file's length and of the second of its last change.
#[tokio::test]
async fn two_versions_of_equal_length_within_a_second_never_share_an_etag() {
    let nginx = Nginx::start("board.conf", "").await;
    let mut folder = Folder::open(nginx.folder().as_ref()).expect("a folder of its own");
    let url = format!("{}/results.csv", nginx.url);
    let mut seen: Vec<(String, &str)> = Vec::new();
    for version in ["11111", "22222", "33333"] {
        folder.write(&[file("results.csv", version)], true).expect("written");
        let newest = get(&url).await;
        assert_eq!(newest.body, version);
        for (etag, old) in &seen {
            let asked = ask("GET", &url, &[("If-None-Match", etag)]).await;
            assert_eq!((asked.status, &*asked.body), (200, version), "not the answer to {old}");
        }
        let etag = newest.header("etag").to_owned();
        let unchanged = ask("GET", &url, &[("If-None-Match", &etag)]).await;
        assert_eq!((unchanged.status, &*unchanged.body), (304, ""));
        seen.push((etag, version));
    }
}

fn file(name: &str, content: &str) -> board::File {
    let content = content.to_owned().into();
    board::File { name: name.to_owned(), kind: board::Kind::Csv, content }
}

/// What differs by server, by moment, or by compression.
const OWN_HEADERS: &str = "connection content-length date etag last-modified server vary";
const ADDRESSES: &str = "/ /fr/ /en/ /results.json /results.csv /results-fr.csv /history.json \
                         /final/3/results.json /final/3/results.csv /fr/index.html /final/4/results.csv";

/// An answer's headers that everybody who serves the board has to send, and what it says.
async fn answer(method: &str, base: &str, path: &str) -> (u16, BTreeMap<String, String>, String) {
    let mut page = ask(method, &format!("{base}{path}"), &[]).await;
    page.headers.retain(|name, _| OWN_HEADERS.split(' ').all(|own| own != name));
    if page.status == 200 {
        // Two boards have read at different moments.
        page.body.retain(|c| !c.is_ascii_digit());
    } else {
        // Each server has its own words for what is missing.
        page.body.clear();
        page.headers.remove("content-type");
    }
    (page.status, page.headers, page.body)
}

/// The board would wait for a body, and close the connection.
#[tokio::test]
async fn the_proxy_passes_a_request_on_without_a_body_or_its_length() {
    let (listener, port) = listen().await;
    let proxy = Nginx::start("board-proxy.conf", &format!("127.0.0.1:{port}")).await;
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("nginx connects");
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head").into());
        }
        head.to_ascii_lowercase()
    });
    // It ends without an answer.
    let answer = post(&format!("{}/results.json", proxy.url), &json!({"a": "body"})).await;
    let head = asked.await.expect("a request");
    assert!(head.starts_with("post /results.json"), "{head}");
    assert_lacks(&head, &["content-length", "transfer-encoding"]);
    assert_eq!((answer.status, answer.header("cache-control")), (502, "no-store"));
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn files_and_a_proxy_answer_as_the_board_itself_also_for_a_minute_without_it() {
    let stage = Stage::with_roles(Servers::shared(), "nginxlive").await;
    counted(&stage).await;
    publish(&stage, "counting", &["--not-before", PAST]).await;
    publish(&stage, "provisional", &[]).await;
    publish(&stage, "final", &[]).await;
    let board = Board::start(&stage).await;
    board.until("\"state\":\"final\"").await;
    let files = Nginx::start("board.conf", "").await;
    let proxy = Nginx::start("board-proxy.conf", board.url.trim_start_matches("http://")).await;
    let writer = board.also_writes(&files.folder()).await;
    let style = get(&board.url).await.body;
    let style = style.split("href=\"").nth(1).and_then(|rest| rest.split('"').next());
    let style = format!("/{}", style.expect("a style"));
    assert!(style.ends_with(".css"), "{style}");
    let results = format!("{}/results.json", files.url);
    eventually("files", async || get(&results).await.status == 200).await;
    for method in ["GET", "HEAD", "POST"] {
        for path in ADDRESSES.split_whitespace().chain([&*style]) {
            let live = answer(method, &board.url, path).await;
            assert_eq!(answer(method, &files.url, path).await, live, "files: {method} {path}");
            assert_eq!(answer(method, &proxy.url, path).await, live, "proxy: {method} {path}");
        }
    }
    for base in [&files.url, &proxy.url] {
        // One that does not change meanwhile.
        let url = format!("{base}{style}?again");
        let page = ask("GET", &url, &[("Accept-Encoding", "gzip")]).await;
        let compressed = (page.header("content-encoding"), page.header("vary"));
        assert_eq!(compressed, ("gzip", "Accept-Encoding"), "for those who ask");
        let known = [("If-None-Match", page.header("etag"))];
        assert_eq!(ask("GET", &url, &known).await.status, 304, "{url}");
    }

    // The only visitor, who asks every 5 to 7 s, gets no answer that the cache has from the last time: it may keep one
    // for 2 s, and use it for one more second while it asks; nginx counts whole seconds.
    publish(&stage, "provisional", &[]).await;
    let data = format!("{}/results.json", proxy.url);
    let mut asked = Instant::now();
    eventually("provisional", async || {
        get(&data).await;
        asked = Instant::now();
        get(&format!("{}/results.json", board.url)).await.body.contains(PROVISIONAL)
    })
    .await;
    eventually("the next poll", async || asked.elapsed() >= Duration::from_secs(5)).await;
    let next = get(&data).await.body;
    assert!(next.contains(PROVISIONAL), "{next}");

    // Longer than a minute nobody may see what the board cannot withhold.
    let headers = answer("GET", &board.url, "/").await.1;
    get(&proxy.url).await;
    board.service.stop().await;
    let mut answers = 0;
    // stale-if-error begins after the 2 s, and nginx counts whole seconds.
    let longest = Duration::from_secs(60 + 2 + 1) + A_STEP;
    eventually_within(longest, "the page without a board", async || {
        let page = answer("GET", &proxy.url, "/").await;
        answers += 1;
        assert_eq!(page.0, 200);
        let withheld = page.2.contains(WITHHELD);
        assert!(withheld || page.2.contains("Loi relative au sol"), "{}", page.2);
        assert_eq!(page.1.keys().collect::<Vec<_>>(), headers.keys().collect::<Vec<_>>());
        withheld && answers > 20
    })
    .await;
    // The cache asked for the data last.
    let latest = Duration::from_secs(5) + A_STEP;
    eventually_within(latest, "no data", async || get(&data).await.status == 502).await;
    let away = get(&data).await;
    assert_eq!((away.status, away.header("cache-control")), (502, "no-store"));
    assert!(away.header("content-security-policy").starts_with("default-src 'none'"));
    assert_lacks(&away.body, &["law-"]);
    writer.stop().await;
}
