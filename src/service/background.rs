//! Supervised background tasks: one that ends, by a panic or by a return, ends the service.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A background task ended, which none may do while the service runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the background task \"{name}\" {how}, and the service cannot go on without it")]
pub struct TaskEnded {
    pub name: &'static str,
    how: &'static str,
}

/// A background task with its name.
pub type NamedTask = (&'static str, BoxFuture<'static, ()>);

/// Spawns named tasks; all of them are aborted when it is dropped.
#[derive(Debug)]
pub(super) struct Background {
    ended: mpsc::UnboundedSender<TaskEnded>,
    tasks: Vec<AbortOnDrop>,
}

/// Receives the first task that ends.
#[derive(Debug)]
pub(super) struct Supervision(mpsc::UnboundedReceiver<TaskEnded>);

impl Background {
    pub(super) fn new() -> (Self, Supervision) {
        let (ended, receiver) = mpsc::unbounded_channel();
        (Self { ended, tasks: Vec::new() }, Supervision(receiver))
    }

    /// Runs `task`, which must never end, on the current runtime.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let ended = self.ended.clone();
        self.tasks.push(AbortOnDrop(tokio::spawn(async move {
            // Without a receiver the service has ended already.
            ended.send(supervised(name, task).await).ok();
        })));
    }
}

impl Supervision {
    /// Waits until a task ends; for ever when none does.
    pub(super) async fn ended(&mut self) -> TaskEnded {
        match self.0.recv().await {
            Some(ended) => ended,
            // All senders are dropped: every task was aborted together with its owner.
            None => std::future::pending().await,
        }
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

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_first_task_that_ends_is_named_with_how_it_ended() {
        let (mut background, mut supervision) = Background::new();
        background.spawn("endless", std::future::pending());
        assert!(supervision.ended().now_or_never().is_none());
        background.spawn("brief", async {});
        let ended = supervision.ended().await;
        assert_eq!((ended.name, ended.how), ("brief", "returned"));
        background.spawn("broken", async { panic!("on purpose") });
        let ended = supervision.ended().await;
        assert_eq!((ended.name, ended.how), ("broken", "panicked"));
        assert!(ended.to_string().contains("\"broken\" panicked"), "{ended}");
    }

    #[tokio::test]
    async fn tasks_are_aborted_with_their_owner() {
        let (mut background, mut supervision) = Background::new();
        let (alive, aborted) = oneshot::channel::<()>();
        background.spawn("endless", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(background);
        assert!(aborted.await.is_err(), "the task is dropped");
        assert!(supervision.ended().now_or_never().is_none(), "an abort is not an end");
    }
}
