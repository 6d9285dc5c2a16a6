//! `/livez` beside a runtime that is blocked.

use std::sync::mpsc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::*;

async fn status(router: &Router, path: &str) -> StatusCode {
    let request = Request::get(path).body(Body::empty()).expect("a request");
    TowerToHyperService::new(router.clone()).call(request).await.expect("infallible").status()
}

/// The counting runtime is a real one that a task of its own blocks. The clock of the runtime that
/// answers is paused: 30 s pass for it alone.
#[tokio::test(start_paused = true)]
async fn livez_is_503_while_the_counting_runtime_is_blocked() {
    let (beat, mut heartbeat) = watch::channel(());
    let (block, blocked) = mpsc::channel::<()>();
    let counting = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async move {
            beat.send_replace(());
            let blocking = tokio::spawn(async move { blocked.recv().expect("released") });
            // Not reached while the only thread is blocked by the task before.
            let beating = tokio::spawn(async move {
                beat.send_replace(());
                beat
            });
            blocking.await.expect("no panic");
            beating.await.expect("no panic")
        })
    });
    heartbeat.changed().await.expect("a first heartbeat");
    let health = Arc::new(Health::default());
    let sources = Sources {
        metrics: Metrics::off(Arc::clone(&health)),
        health,
        stop: CancellationToken::new(),
        heartbeat: heartbeat.clone(),
    };
    let liveness = Liveness::default();
    let router = router(sources, &liveness);
    let answering = async {
        assert_eq!(status(&router, "/livez").await, StatusCode::OK);
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!(status(&router, "/livez").await, StatusCode::OK, "not for long enough");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(status(&router, "/livez").await, StatusCode::SERVICE_UNAVAILABLE);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(status(&router, "/livez").await, StatusCode::SERVICE_UNAVAILABLE);
        block.send(()).expect("the blocked task waits");
        // Joined, so that the heartbeat was sent to the end before the clock goes on.
        let beat = counting.join().expect("no panic");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(status(&router, "/livez").await, StatusCode::OK);
        drop(beat);
    };
    tokio::select! {
        () = liveness.follow(heartbeat.clone()) => unreachable!("the sender lives"),
        () = answering => {}
    }
}
