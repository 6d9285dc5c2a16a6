//! What a service manager receives, on a datagram socket of the test's own.

use rustix::process::Signal;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::support::{PATIENCE, Servers, Service, Stage};

/// In place of systemd.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    /// In the system's folder for temporary files: a socket's path has to be short.
    fn listening(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("notify-{name}-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        let socket = UnixDatagram::bind(&path).expect("a socket of the test's own");
        Self { socket, path: path.to_str().expect("UTF-8").to_owned() }
    }

    /// The service, as this manager starts it.
    async fn start(&self, stage: &Stage<'_>, overrides: &[(&str, &str)]) -> Service {
        stage.spawn(&[&[("NOTIFY_SOCKET", self.path.as_str())], overrides].concat()).await
    }

    /// The assignments of the next message.
    async fn receive(&self) -> Vec<String> {
        let mut message = [0; 4_096];
        let received = timeout(PATIENCE, self.socket.recv(&mut message)).await;
        let length = received.expect("a message in time").expect("received");
        let text = std::str::from_utf8(&message[..length]).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    /// Assignments, in order, up to the message with one that begins with `last`.
    async fn receive_until(&self, last: &str) -> Vec<String> {
        let mut received = Vec::new();
        while !received.iter().any(|assignment: &String| assignment.starts_with(last)) {
            received.extend(self.receive().await);
        }
        received
    }

    /// What was sent and not received yet.
    fn left(&self) -> Vec<String> {
        let mut message = [0; 4_096];
        let next = || {
            let length = self.socket.try_recv(&mut message).ok()?;
            Some(String::from_utf8_lossy(&message[..length]).into_owned())
        };
        std::iter::from_fn(next).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

#[tokio::test]
async fn it_is_notified_of_start_watchdog_and_stop() {
    let stage = Stage::migrated(Servers::shared(), "notify").await;
    let manager = Manager::listening("life");
    let mut service = manager.start(&stage, &[("WATCHDOG_USEC", "200000")]).await;

    let start = manager.receive_until("READY=1").await;
    let [before @ .., ready, status] = &start[..] else { panic!("{start:?}") };
    assert_eq!((ready.as_str(), status.as_str()), ("READY=1", "STATUS=counting votes"));
    assert!(before.iter().all(|earlier| earlier == "WATCHDOG=1"), "{before:?}");
    assert_eq!(service.get("/readyz").await.status, 200, "ready when it says so");

    // While it counts, too: the same task pings.
    stage.count(0, 5_000).await;
    for _ in 0..3 {
        assert_eq!(manager.receive().await, ["WATCHDOG=1"]);
    }

    service.signal(Signal::TERM);
    let stop = manager.receive_until("STOPPING=1").await;
    assert!(stop.iter().any(|message| message.starts_with("STATUS=stopping")), "{stop:?}");
    assert!(!stop.contains(&"READY=1".to_owned()), "ready once: {stop:?}");
    assert_eq!(service.exit_code().await, Some(0), "{}", service.log());
    let left = manager.left();
    assert!(left.iter().all(|message| message == "WATCHDOG=1\n"), "{left:?}");
}

#[tokio::test]
async fn without_a_watchdog_there_are_no_pings() {
    let stage = Stage::migrated(Servers::shared(), "notify_plain").await;
    let manager = Manager::listening("plain");
    // As for a child of the main process: this watchdog is for another process.
    let elsewhere = [("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "1")];
    let service = manager.start(&stage, &elsewhere).await;
    assert_eq!(manager.receive_until("READY=1").await, ["READY=1", "STATUS=counting votes"]);
    service.stop().await;
    let stop = manager.left().concat();
    assert!(stop.starts_with("STOPPING=1\n") && !stop.contains("WATCHDOG"), "{stop}");
}

#[tokio::test]
async fn an_outage_is_a_status_and_no_failed_start() {
    let servers = Servers::private("notify");
    let stage = Stage::migrated(&servers, "notify_outage").await;
    servers.script(&["stop", "rabbitmq"]);
    let manager = Manager::listening("outage");
    let service = manager.start(&stage, &[]).await;
    let start = manager.receive_until("READY=1").await;
    let status = start.last().expect("a status");
    assert!(status.starts_with("STATUS=not counting votes; RabbitMQ: "), "{status}");
    servers.script(&["start", "rabbitmq"]);
    let recovery = manager.receive_until("STATUS=counting votes").await;
    assert!(!recovery.contains(&"READY=1".to_owned()), "{recovery:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_fatal_error_never_gets_ready() {
    let stage = Stage::migrated(Servers::shared(), "notify_refused").await;
    let manager = Manager::listening("refused");
    let service = manager.start(&stage, &[("POSTGRES_PASSWORD", "wrong-secret")]).await;
    service.assert_ends(77, &[]).await;
    assert_eq!(manager.left(), <Vec<String>>::new());
}

#[tokio::test]
async fn votes_are_counted_without_a_manager_and_with_one_that_does_not_read() {
    let stage = Stage::migrated(Servers::shared(), "notify_deaf").await;
    let manager = Manager::listening("deaf");
    // Once the buffer is full, whoever sends waits.
    let full = UnixDatagram::unbound().expect("a socket");
    while full.try_send_to(b"WATCHDOG=1\n", &manager.path).is_ok() {}
    for (first, socket) in [(0, "/nowhere/notify"), (1_000, &manager.path)] {
        let overrides = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "200000")];
        let service = stage.start(&overrides).await;
        stage.count(first, 1_000).await;
        service.until_logged("the service manager cannot be notified").await;
        // Ends with 0, so within the deadline of a stop.
        let log = service.stop().await;
        assert_eq!(log.matches("the service manager cannot be notified").count(), 1, "{log}");
    }
}
