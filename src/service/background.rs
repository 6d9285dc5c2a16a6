//! Supervised background tasks: one that ends, by a panic or by a return, ends the service.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

/// A background task ended while the service was running.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the background task \"{name}\" {how}, and the service cannot continue without it")]
pub struct TaskEnded {
    pub name: &'static str,
    pub how: &'static str,
}

/// Spawns named tasks; all of them are aborted when it is dropped.
#[derive(Debug)]
pub(super) struct Background {
    ended: UnboundedSender<TaskEnded>,
    tasks: JoinSet<()>,
}

impl Background {
    /// Also returns what receives the tasks that end.
    pub(super) fn new() -> (Self, UnboundedReceiver<TaskEnded>) {
        let (ended, receiver) = mpsc::unbounded_channel();
        (Self { ended, tasks: JoinSet::new() }, receiver)
    }

    /// Runs `task`, which must never end, on the current runtime.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let ended = self.ended.clone();
        self.tasks.spawn(async move {
            // Without a receiver the service has ended already.
            ended.send(supervised(name, task).await).ok();
        });
    }
}

/// Runs `task` to its end and returns how it ended; a panic is caught.
pub(super) async fn supervised<T>(name: &'static str, task: impl Future<Output = T>) -> TaskEnded {
    // The panic's message is on standard error already.
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(_) => TaskEnded { name, how: "returned" },
        Err(_) => TaskEnded { name, how: "panicked" },
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_first_task_that_ends_is_named_with_how_it_ended() {
        let (mut background, mut ended) = Background::new();
        background.spawn("endless", std::future::pending());
        assert_eq!(ended.recv().now_or_never(), None);
        background.spawn("brief", async {});
        assert_eq!(ended.recv().await, Some(TaskEnded { name: "brief", how: "returned" }));
        background.spawn("broken", async { panic!("on purpose") });
        assert_eq!(ended.recv().await, Some(TaskEnded { name: "broken", how: "panicked" }));
    }

    #[tokio::test]
    async fn tasks_are_aborted_with_their_owner() {
        let (mut background, mut ended) = Background::new();
        let (alive, aborted) = oneshot::channel::<()>();
        background.spawn("endless", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(background);
        assert!(aborted.await.is_err(), "the task is dropped");
        assert_eq!(ended.recv().await, None, "an abort is not an end");
    }
}
