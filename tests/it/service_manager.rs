//! What a service manager hears, on a datagram socket of the test's own.

use std::path::PathBuf;

use rustix::process::Signal;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::support::{PATIENCE, Servers, Service, Stage, votes};

/// Stands where systemd would.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    /// In the system's folder for temporary files: a socket's path has to be short.
    fn listening(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("notify-{name}-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        let socket = UnixDatagram::bind(&path).expect("a socket of the test's own");
        Self { socket, path }
    }

    /// The service, as this manager starts it.
    async fn start(&self, stage: &Stage<'_>, overrides: &[(&str, &str)]) -> Service {
        let socket = self.path.to_str().expect("UTF-8");
        let overrides = [&[("NOTIFY_SOCKET", socket)], overrides].concat();
        stage.spawn(&overrides).await
    }

    /// The assignments of the next message.
    async fn hears(&self) -> Vec<String> {
        let mut message = [0; 4_096];
        let received = timeout(PATIENCE, self.socket.recv(&mut message)).await;
        let length = received.expect("a message in time").expect("received");
        let text = std::str::from_utf8(&message[..length]).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    /// Assignments, in order, up to the first that begins with `last`.
    async fn hears_until(&self, last: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let message = self.hears().await;
            let found = message.iter().any(|assignment| assignment.starts_with(last));
            heard.extend(message);
            if found {
                return heard;
            }
        }
    }

    /// What was sent and not heard yet.
    fn left(&self) -> Vec<String> {
        let mut message = [0; 4_096];
        let mut left = Vec::new();
        while let Ok(length) = self.socket.try_recv(&mut message) {
            left.push(String::from_utf8_lossy(&message[..length]).into_owned());
        }
        left
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

#[tokio::test]
async fn it_hears_of_the_start_of_life_and_of_the_stop() {
    let stage = Stage::migrated(Servers::shared(), "notify").await;
    let manager = Manager::listening("life");
    let mut service = manager.start(&stage, &[("WATCHDOG_USEC", "200000")]).await;

    let start = manager.hears_until("READY=1").await;
    let (status, before) = start.split_last().expect("something");
    assert_eq!(status, "STATUS=counting votes");
    let (ready, before) = before.split_last().expect("two assignments");
    assert_eq!(ready, "READY=1");
    assert!(before.iter().all(|earlier| earlier == "WATCHDOG=1"), "{before:?}");
    assert_eq!(service.get("/readyz").await.status, 200, "ready when it says so");

    // Under way, too: the task that gives the sign is the one that counts.
    stage.publish_votes(&votes(0, 5_000)).await;
    stage.until_counted(5_000).await;
    for _ in 0..3 {
        assert_eq!(manager.hears().await, ["WATCHDOG=1"]);
    }

    service.signal(Signal::TERM);
    let stop = manager.hears_until("STOPPING=1").await;
    assert!(stop.iter().any(|message| message.starts_with("STATUS=stopping")), "{stop:?}");
    assert!(!stop.contains(&"READY=1".to_owned()), "a start is told once: {stop:?}");
    assert_eq!(service.exit_code().await, Some(0), "{}", service.log());
    let left = manager.left();
    assert!(left.iter().all(|message| message == "WATCHDOG=1\n"), "{left:?}");
}

#[tokio::test]
async fn without_a_watchdog_there_are_no_signs_of_life() {
    let stage = Stage::migrated(Servers::shared(), "notify_plain").await;
    let manager = Manager::listening("plain");
    // As systemd does for a child of the main process: this watchdog is somebody else's.
    let elsewhere = [("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "1")];
    let mut service = manager.start(&stage, &elsewhere).await;
    let start = manager.hears_until("READY=1").await;
    assert_eq!(start, ["READY=1", "STATUS=counting votes"]);
    service.signal(Signal::TERM);
    assert_eq!(service.exit_code().await, Some(0), "{}", service.log());
    let stop = manager.left().concat();
    assert!(stop.starts_with("STOPPING=1\n") && !stop.contains("WATCHDOG"), "{stop}");
}

#[tokio::test]
async fn an_outage_is_told_and_is_no_failed_start() {
    let servers = Servers::private("notify");
    let stage = Stage::migrated(&servers, "notify_outage").await;
    servers.script(&["stop", "rabbitmq"]);
    let manager = Manager::listening("outage");
    let service = manager.start(&stage, &[]).await;
    let start = manager.hears_until("READY=1").await;
    let status = start.last().expect("a status");
    assert!(status.starts_with("STATUS=not counting votes; RabbitMQ: "), "{status}");
    servers.script(&["start", "rabbitmq"]);
    let recovery = manager.hears_until("STATUS=counting votes").await;
    assert!(!recovery.contains(&"READY=1".to_owned()), "{recovery:?}");
    service.stop().await;
}

#[tokio::test]
async fn what_waiting_does_not_mend_never_gets_ready() {
    let stage = Stage::migrated(Servers::shared(), "notify_refused").await;
    let manager = Manager::listening("refused");
    let mut service = manager.start(&stage, &[("POSTGRES_PASSWORD", "wrong-secret")]).await;
    assert_eq!(service.exit_code().await, Some(77), "{}", service.log());
    assert_eq!(manager.left(), <Vec<String>>::new());
}

#[tokio::test]
async fn a_manager_that_is_not_there_or_does_not_listen_is_no_reason_not_to_count() {
    let stage = Stage::migrated(Servers::shared(), "notify_deaf").await;
    let manager = Manager::listening("deaf");
    let busy = manager.path.to_str().expect("UTF-8");
    // Nobody reads it: once its buffer is full, whoever sends waits.
    let full = UnixDatagram::unbound().expect("a socket");
    while full.try_send_to(b"WATCHDOG=1\n", &manager.path).is_ok() {}
    for (socket, watchdog) in [("/nowhere/notify", "200000"), (busy, "200000")] {
        let began = stage.number("SELECT count(*) FROM vote_audit").await;
        let overrides = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", watchdog)];
        let service = stage.start(&overrides).await;
        let first = u64::try_from(began).expect("a count");
        stage.publish_votes(&votes(first, 1_000)).await;
        stage.until_counted(usize::try_from(first).expect("small") + 1_000).await;
        service.until_logged("the service manager cannot be notified").await;
        // Ends with 0, so within the deadline of a stop.
        let log = service.stop().await;
        assert_eq!(log.matches("the service manager cannot be notified").count(), 1, "{log}");
    }
}
