//! The README's first command, as written.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Builds in release mode when nobody did yet: on two cores, some minutes.
const DEMO_TIMEOUT: Duration = Duration::from_secs(20 * 60);

#[tokio::test]
async fn the_demo_agrees_and_leaves_nothing_running() {
    let root = env!("CARGO_MANIFEST_DIR");
    let kept = std::path::Path::new(root).join("target/services/demo");
    assert!(!kept.exists(), "a demo is running here; script/demo --stop ends it");
    let demo = Command::new("script/demo")
        .current_dir(root)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output =
        timeout(DEMO_TIMEOUT, demo).await.expect("ends in time").expect("script/demo runs");
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{errors}");
    let verdict = told.lines().rfind(|line| line.contains("AGREE")).unwrap_or_default();
    assert!(verdict.starts_with("AGREE"), "{told}");
    assert!(!kept.exists(), "it cleaned up");
}
