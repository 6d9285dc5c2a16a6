//! Background tasks that end, without servers.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::*;
use crate::platform::config::Sources;

/// Nothing listens on port 1.
fn without_servers() -> Config {
    let settings = [
        ("POSTGRES_HOST", "127.0.0.1"),
        ("POSTGRES_PORT", "1"),
        ("PROMETHEUS_HOST", "127.0.0.1"),
        ("PROMETHEUS_PORT", "0"),
    ];
    let environment = settings.map(|(name, value)| (name.to_owned(), value.into())).into();
    Config::load(&Sources { environment, ..Sources::default() }).expect("a good configuration")
}

#[tokio::test]
async fn a_task_that_ends_ends_the_service_with_an_error_that_names_it() {
    let config = without_servers();
    let tasks: [(_, BoxFuture<'static, ()>); 2] = [
        ("broken", async { panic!("on purpose") }.boxed()),
        ("brief", tokio::time::sleep(Duration::from_millis(300)).boxed()),
    ];
    for (name, task) in tasks {
        let stop = CancellationToken::new();
        let mut background = Background::new();
        background.0.spawn(name, task);
        let ended = run_with(&config, None, &stop, background).await;
        let Err(ServiceError::TaskEnded(ended)) = ended else { panic!("{ended:?}") };
        assert_eq!(ended.name, name);
        assert!(!stop.is_cancelled(), "the caller's token is the caller's");
    }
}

#[tokio::test]
async fn a_stop_with_every_task_alive_is_no_error() {
    let (config, stop) = (without_servers(), CancellationToken::new());
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(run(&config, None, &stop), stopping);
    ended.expect("stopped");
}
