//! An open page: it follows the results, and says when it cannot.

use std::time::Duration;

use super::*;
use crate::nginx::Nginx;
use crate::support::eventually_within;

/// Three hours ahead.
const WRONG_CLOCK: &str = "const right = Date.now.bind(Date), Right = Date; \
    Date = class extends Right { constructor(...all) { all.length ? super(...all) : super(right() + 108e5); } \
    static now() { return right() + 108e5; } };";
/// A network that a test stops, and time that it lets pass: `window.held` holds requests back, `away` loses them.
const NETWORK: &str = "const get = fetch.bind(window), now = performance.now.bind(performance); \
    Object.assign(window, { held: 0, away: 0, waiting: 0, passed: 0 }); \
    performance.now = () => now() + window.passed; \
    window.fetch = async (url, options) => { \
        window.waiting += 1; await window.held; window.waiting -= 1; \
        if (window.away) throw new TypeError('away'); \
        return get(url, { ...options, signal: undefined }); };";
const STATUS: &str = "return document.getElementById('status').textContent";
const NOW: &str = "return performance.now()";

/// The votes that the page shows for a law.
async fn total(browser: &Browser, law: &str) -> String {
    let cells = format!(
        "const law = [...document.querySelectorAll('article')].find(it => it.innerText.includes('{law}')); \
         return law?.querySelector('tbody tr:last-child td').innerText ?? ''"
    );
    browser.text(&cells).await
}

async fn until_total(browser: &Browser, law: &str, expected: &str) {
    eventually(expected, async || total(browser, law).await == expected).await;
}

async fn count_more(stage: &Stage<'_>, first: u64, count: u64) {
    let more: Vec<Vote> = (first..first + count).map(|n| vote(n, "law-003", Choice::Oui)).collect();
    stage.store().await.count(Votes::new(more)).await.expect("counted");
}

#[tokio::test]
async fn an_open_page_follows_the_results_pauses_and_tells_an_interruption() {
    let servers = Servers::private("browserlive");
    let stage = Stage::with_roles(&servers, "browserlive").await;
    counted(&stage).await;
    publish(&stage, "counting", &["--not-before", PAST]).await;
    let board = Board::start(&stage).await;
    let browser = Browser::start().await;
    browser.open(&format!("{}/en/", board.url)).await;
    assert_eq!(total(&browser, "law-003").await, "500");

    // By default the board reads every 2 s, and the page asks after 7 s at most.
    count_more(&stage, 5_000, 50).await;
    let follows = async || total(&browser, "law-003").await == "550";
    eventually_within(Duration::from_secs(10), "550", follows).await;

    browser.click("#pause").await;
    let paused = browser.script(NOW).await.as_f64().expect("a number");
    count_more(&stage, 6_000, 50).await;
    board.until("\"total\":600").await;
    let two_polls = async || browser.script(NOW).await.as_f64() > Some(paused + 16_000.0);
    eventually("the time of two polls", two_polls).await;
    assert_eq!(total(&browser, "law-003").await, "550");
    browser.click("#pause").await;
    until_total(&browser, "law-003", "600").await;

    servers.script(&["stop", "postgres"]);
    browser.until_shown("Updates are interrupted: the database does not answer").await;
    assert_eq!(total(&browser, "law-003").await, "600", "the last numbers stay");
    servers.script(&["start", "postgres"]);
    let resumed = async || !browser.shown().await.contains("the database does not answer");
    eventually("no interruption", resumed).await;

    // A state is told at once, and no number stays.
    publish(&stage, "withheld", &[]).await;
    let withheld = async || browser.shown().await.contains("Results not published");
    eventually_within(Duration::from_secs(20), "withheld", withheld).await;
    assert_lacks(&browser.shown().await, &["600"]);
    assert_eq!(browser.text(STATUS).await, "Results not published");
    assert_eq!(browser.complaints().await, [""; 0]);
    board.service.stop().await;
}

#[tokio::test]
async fn a_visitors_wrong_clock_tells_no_interruption_and_hides_none() {
    let stage = Stage::with_roles(Servers::shared(), "browserclock").await;
    counted(&stage).await;
    publish(&stage, "counting", &["--not-before", PAST]).await;
    let board = Board::start(&stage).await;
    let browser = Browser::start().await;
    browser.before_each_page(WRONG_CLOCK).await;
    browser.open(&format!("{}/en/", board.url)).await;
    let ahead = "return new Date() - performance.timeOrigin - performance.now() > 10_000_000";
    assert_eq!(browser.script(ahead).await, true, "the clock is wrong");
    let checked = "return document.getElementById('results').dataset.checked";
    let first = browser.text(checked).await;
    // Each is an answer of the board that the page has compared with its clock.
    let mut seen = std::collections::BTreeSet::from([first]);
    eventually("three readings", async || {
        seen.insert(browser.text(checked).await);
        seen.len() >= 3
    })
    .await;
    assert_eq!(browser.text(STATUS).await, "");

    // A board that ended cannot say so.
    board.service.stop().await;
    let told = async || browser.text(STATUS).await.starts_with("Updates are interrupted");
    eventually_within(Duration::from_secs(120), "interrupted", told).await;
    assert_eq!(total(&browser, "law-003").await, "500");
}

#[tokio::test]
async fn what_is_announced_is_the_state_and_what_arrives_after_pause_is_not_shown() {
    let stage = Stage::with_roles(Servers::shared(), "browsertold").await;
    counted(&stage).await;
    publish(&stage, "counting", &["--not-before", PAST]).await;
    let board = Board::start(&stage).await;
    let browser = Browser::start().await;
    browser.before_each_page(NETWORK).await;
    browser.open(&format!("{}/en/", board.url)).await;
    // Screen readers announce what changes in an element that they know.
    let display = "return getComputedStyle(document.getElementById('status')).display";
    assert_eq!(browser.text(STATUS).await + &browser.text(display).await, "block");
    assert_eq!(browser.inaccessible().await, [""; 0]);

    browser.script("held = new Promise(free => { window.free = free })").await;
    eventually("a request", async || browser.script("return waiting").await == 1).await;
    count_more(&stage, 5_000, 50).await;
    board.until("\"total\":550").await;
    browser.click("#pause").await;
    browser.script("held = free()").await;
    let released = browser.script(NOW).await.as_f64().expect("a number");
    let later = async || browser.script(NOW).await.as_f64() > Some(released + 1_000.0);
    eventually("the time of an answer", later).await;
    assert_eq!(total(&browser, "law-003").await, "500");
    browser.click("#pause").await;
    until_total(&browser, "law-003", "550").await;

    let interrupt = async || {
        browser.script("away = 1; passed += 61000").await;
        let told = async || browser.text(STATUS).await.starts_with("Updates are interrupted");
        eventually("interrupted", told).await;
    };
    // The page asks again as soon as it is looked at.
    let resume = async || {
        browser.script("away = 0; document.dispatchEvent(new Event('visibilitychange'))").await;
        let class = "return document.getElementById('status').className";
        eventually("resumed", async || browser.text(class).await.is_empty()).await;
        browser.text(STATUS).await
    };
    interrupt().await;
    assert_eq!(resume().await, "Updates have resumed.");
    interrupt().await;
    publish(&stage, "withheld", &[]).await;
    board.until("\"state\":\"withheld\"").await;
    assert_eq!(resume().await, "Results not published");
    assert_eq!(browser.complaints().await, [""; 0]);
    board.service.stop().await;
}

/// In front of a board that listens: it keeps an answer for 2 s, and the page asks after 7 s at most.
#[tokio::test]
async fn what_is_withheld_leaves_open_pages_behind_the_proxy_within_twenty_seconds() {
    let stage = Stage::with_roles(Servers::shared(), "browserproxy").await;
    counted(&stage).await;
    publish(&stage, "counting", &["--not-before", PAST]).await;
    let board = Board::start(&stage).await;
    let nginx = Nginx::start("board-proxy.conf", board.url.trim_start_matches("http://")).await;
    let browser = Browser::start().await;
    browser.open(&format!("{}/en/", nginx.url)).await;
    assert_eq!(total(&browser, "law-003").await, "500");
    publish(&stage, "withheld", &[]).await;
    let withheld = async || browser.shown().await.contains("Results not published");
    eventually_within(Duration::from_secs(20), "withheld", withheld).await;
    assert_lacks(&browser.shown().await, &["500"]);
    board.service.stop().await;
}

/// As the operator does in front of a board that no longer follows the database.
#[tokio::test]
async fn the_web_servers_plug_takes_the_numbers_off_open_pages() {
    let stage = Stage::with_roles(Servers::shared(), "browserplug").await;
    counted(&stage).await;
    publish(&stage, "counting", &["--not-before", PAST]).await;
    let board = Board::start(&stage).await;
    let nginx = Nginx::start("board.conf", "").await;
    let files = board.also_writes(&nginx.folder()).await;
    let browser = Browser::start().await;
    let url = format!("{}/en/", nginx.url);
    eventually("files", async || get(&url).await.body.contains("law-003")).await;
    browser.open(&url).await;
    assert_eq!(total(&browser, "law-003").await, "500");
    nginx.withhold();
    // As the runbook promises.
    let withheld = async || browser.shown().await.contains("Results not published");
    eventually_within(Duration::from_secs(8), "withheld", withheld).await;
    assert_lacks(&browser.shown().await, &["law-003", "500"]);
    let languages =
        "return [...document.querySelectorAll('html, main, main [lang]')].map(it => it.lang)";
    let languages = browser.script(languages).await;
    assert_eq!(languages, json!(["en", "fr", "en", "en"]), "in a page of another language");
    assert_eq!(browser.inaccessible().await, [""; 0]);

    browser.open(&url).await;
    assert_eq!(browser.inaccessible().await, [""; 0]);
    assert_eq!(browser.complaints().await, [""; 0]);
    for service in [files, board.service] {
        service.stop().await;
    }
}
