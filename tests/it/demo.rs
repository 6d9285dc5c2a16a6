//! The README's first command, as written.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::support::repository::read;
use crate::support::{Ended, assert_contains, eventually, send};

/// Builds when nothing is built yet: on two cores, some minutes.
const DEMO_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Every demo has its servers at the same place.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn demo() -> (Command, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kept = root.join("target/services/demo");
    assert!(!kept.exists(), "a demo is running here; script/demo --stop ends it");
    let mut demo = Command::new("script/demo");
    demo.current_dir(root).stdin(Stdio::null()).kill_on_drop(true);
    (demo, kept)
}

#[tokio::test]
async fn the_demo_agrees_and_leaves_nothing_running() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (mut demo, kept) = demo();
    let output = timeout(DEMO_TIMEOUT, demo.output()).await.expect("ends in time");
    let Ended { stdout, .. } = Ended::from(output.expect("script/demo runs")).assert(0, &[]);
    let verdict = stdout.lines().rfind(|line| line.contains("AGREE")).unwrap_or_default();
    assert!(verdict.starts_with("AGREE"), "{stdout}");
    assert!(!kept.exists(), "it cleaned up");
    let page = read("target/demo/board/en/index.html");
    assert_contains(&page, &["<title>TEST – Partial results", "law-001"]);
}

/// As by `script/demo | less`, left early.
#[tokio::test]
async fn a_demo_whose_output_is_closed_cleans_up() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (mut demo, kept) = demo();
    let piped = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut demo = piped.expect("script/demo runs");
    eventually("servers", async || kept.join("postgres/data").exists()).await;
    drop((demo.stdout.take(), demo.stderr.take()));
    send(&demo, Signal::TERM);
    timeout(DEMO_TIMEOUT, demo.wait()).await.expect("ends in time").expect("a status");
    assert!(!kept.exists(), "servers are left");
}
