//! A headless Chromium, controlled over WebDriver by ChromeDriver.

use std::fs::{self, File};
use std::process::Stdio;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::processes::signal_tree;
use super::repository::run;
use super::web::{Page, ask, post};
use super::{Files, eventually};

/// ChromeDriver's line once it has a port.
const LISTENS: &str = "was started successfully on port ";
/// What an element is called in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser of one test's own, ended with this value.
pub struct Browser {
    driver: Child,
    /// The address of its session.
    session: String,
    /// Its profile and log.
    _files: Files,
}

impl Browser {
    pub async fn start() -> Self {
        let program = run("script/services", &["chromedriver"]).assert(0, &[]).stdout;
        let program = program.trim();
        let files = Files::new("browser");
        let log = files.join("log");
        let mut command = Command::new(program);
        command.arg("--port=0").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let driver = command.stdout(File::create(&log).expect("a log file")).spawn();
        let driver = driver.expect("ChromeDriver runs");
        let mut port = String::new();
        eventually("ChromeDriver listens", async || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let rest = log.split_once(LISTENS).and_then(|(_, rest)| rest.split_once('.'));
            port = rest.map_or("", |(port, _)| port).to_owned();
            !port.is_empty()
        })
        .await;
        let profile = format!("--user-data-dir={}", files.file("profile"));
        // It loads pages of the tests alone; its sandbox needs privileges that root does not have.
        let arguments =
            ["--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", &profile];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {
                "binary": program.replace("chromedriver", "chromium"),
                "args": arguments,
            },
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let server = format!("http://127.0.0.1:{port}/session");
        let session = value(post(&server, &capabilities).await);
        let id = session["sessionId"].as_str().expect("a session");
        Self { driver, session: format!("{server}/{id}"), _files: files }
    }

    async fn command(&self, name: &str, body: Value) -> Value {
        value(post(&format!("{}/{name}", self.session), &body).await)
    }

    /// A command of Chromium's own protocol.
    async fn devtools(&self, name: &str, parameters: Value) -> Value {
        self.command("goog/cdp/execute", json!({"cmd": name, "params": parameters})).await
    }

    /// Loads a page.
    pub async fn open(&self, url: &str) {
        self.command("url", json!({"url": url})).await;
    }

    /// The value of a script's `return`.
    pub async fn script(&self, script: &str) -> Value {
        self.command("execute/sync", json!({"script": script, "args": []})).await
    }

    /// As [`Browser::script`], of a text.
    pub async fn text(&self, script: &str) -> String {
        let value = self.script(script).await;
        value.as_str().unwrap_or_else(|| panic!("{script}: {value}")).to_owned()
    }

    /// The text that the page shows, as the visitor reads it.
    pub async fn shown(&self) -> String {
        self.text("return document.body.innerText").await
    }

    /// Waits until the page shows a text.
    pub async fn until_shown(&self, text: &str) {
        eventually(&format!("the page shows {text:?}"), async || self.shown().await.contains(text))
            .await;
    }

    /// The width and height of the page's area, in CSS pixels.
    pub async fn resize(&self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// The preferences of a visitor, such as `prefers-color-scheme`.
    pub async fn prefer(&self, features: &[(&str, &str)]) {
        let features: Vec<Value> =
            features.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    /// Whether pages loaded from now on may run scripts.
    pub async fn allow_scripts(&self, allow: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", json!({"value": !allow})).await;
    }

    /// Runs a script before those of every page loaded from now on.
    pub async fn before_each_page(&self, script: &str) {
        let source = json!({"source": script});
        self.devtools("Page.addScriptToEvaluateOnNewDocument", source).await;
    }

    /// Presses a key, with the code of WebDriver's table for those without a character.
    pub async fn press(&self, key: char) {
        let actions = ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key}));
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.command("actions", json!({"actions": [keyboard]})).await;
    }

    /// Clicks on the first element that a CSS selector finds.
    pub async fn click(&self, selector: &str) {
        let found = self.command("element", json!({"using": "css selector", "value": selector}));
        let found = found.await;
        let element = found[ELEMENT].as_str().expect("an element");
        self.command(&format!("element/{element}/click"), json!({})).await;
    }

    /// The page on paper of A4, as PDF.
    pub async fn print(&self) -> Vec<u8> {
        let page = json!({"page": {"width": 21.0, "height": 29.7}, "background": true});
        decoded(&self.command("print", page).await)
    }

    /// Writes what is in view to a PNG file.
    pub async fn screenshot(&self, path: &std::path::Path) {
        let image = value(ask("GET", &format!("{}/screenshot", self.session), &[]).await);
        fs::write(path, decoded(&image)).expect("written");
    }

    /// What the browser has complained about since it was last asked: errors of scripts, refused addresses,
    /// violations of a page's policy.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.command("se/log", json!({"type": "browser"})).await;
        let entries = entries.as_array().expect("a list").iter();
        entries.map(|entry| entry["message"].as_str().expect("a text").to_owned()).collect()
    }

    /// What axe-core finds inaccessible, one line each; nothing where npm is missing, which `.ci/run` reports.
    pub async fn inaccessible(&self) -> Vec<String> {
        let installed = run("script/services", &["axe"]);
        if installed.code == Some(3) {
            eprintln!("SKIPPED: axe-core: {}", installed.stderr);
            return Vec::new();
        }
        let file = installed.assert(0, &[]).stdout;
        let axe = fs::read_to_string(file.trim()).expect("axe-core");
        self.script(&axe).await;
        let run = "const done = arguments[0]; axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}) \
                   .then(found => done({rules: found.passes.length, violations: found.violations.map( \
                   it => it.id + ': ' + it.help + ': ' + it.nodes.map(n => n.html).join(' | '))}), \
                   error => done({rules: 0, violations: [String(error)]}))";
        let found = self.command("execute/async", json!({"script": run, "args": []})).await;
        let rules = found["rules"].as_u64().expect("a number");
        let violations = found["violations"].as_array().expect("a list").iter();
        let violations: Vec<String> =
            violations.map(|it| it.as_str().expect("a text").to_owned()).collect();
        assert!(rules >= 10 || !violations.is_empty(), "axe has looked: {found}");
        violations
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // ChromeDriver that is killed would leave the browser running.
        if let Some(id) = self.driver.id().and_then(|id| i32::try_from(id).ok()) {
            signal_tree(id, Signal::KILL);
        }
    }
}

fn value(mut answer: Page) -> Value {
    let status = answer.status;
    let mut object = answer.json();
    answer.body.truncate(2_000);
    assert_eq!(status, 200, "{}", answer.body);
    object["value"].take()
}

fn decoded(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().expect("base64")).expect("base64")
}
