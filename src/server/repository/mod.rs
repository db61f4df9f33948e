//! Keeps the models as the repository has them while the server runs.
//!
//! `keeper` looks at the repository and carries out what [`Follower`](crate::model::repository::Follower) decides, with
//! `loader` and within `memory`; it blocks, and so runs on a thread of its own each time. [`run`] calls it: at each
//! poll, for an operator's order, and for a request that needs a model which has left memory. [`RepositoryHandle`] is
//! how they ask; `view` is what they get.

mod keeper;
mod loader;
mod memory;
mod view;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub(in crate::server) use keeper::{Keeper, OrderError};
pub(in crate::server) use loader::Loader;
pub(in crate::server) use view::{VersionView, View};

use super::own_thread::on_a_thread_of_its_own;
use crate::model::repository::{Order, State, VersionKey};
use crate::process;
use crate::schedule::Engine;

/// How far two looks have to be apart that see the same files.
pub(super) const SETTLE: Duration = Duration::from_millis(500);
/// How long an order waits for files that are being written.
const WRITING_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether models that were replaced have left memory.
const CLEAN_UP_INTERVAL: Duration = Duration::from_secs(1);
/// Orders and requests that wait for their turn.
const MAX_ORDERS: usize = 64;

/// What is asked of the keeper.
struct Asked {
    name: String,
    version: Option<i64>,
    order: Order,
    reply: oneshot::Sender<Result<Vec<VersionView>, OrderError>>,
}

/// Asks the keeper; cheap to clone.
#[derive(Clone)]
pub(super) struct RepositoryHandle {
    asked: mpsc::Sender<Asked>,
    view: Arc<Mutex<View>>,
    engine: Engine,
}

impl RepositoryHandle {
    /// Carries out an order for a version, or for all of a model. Returns what became of the versions.
    ///
    /// # Errors
    /// Why nothing was done.
    pub(super) async fn order(
        &self,
        name: String,
        version: Option<i64>,
        order: Order,
    ) -> Result<Vec<VersionView>, OrderError> {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { name, version, order, reply };
        self.asked.send(asked).await.map_err(|_| OrderError::Stopping)?;
        answer.await.unwrap_or(Err(OrderError::Stopping))
    }

    /// The versions of the repository as it was seen last, with what uses them now.
    pub(super) fn versions(&self) -> Vec<VersionView> {
        let mut versions = self.view.lock().versions.clone();
        let models = self.engine.models();
        for view in &mut versions {
            let served = view.version.and_then(|version| models.find(&view.name, version));
            view.in_use = served.map_or(0, |model| model.open_lanes());
        }
        versions
    }

    /// The repository as metrics see it.
    pub(super) fn view(&self) -> &Mutex<View> {
        &self.view
    }
}

/// The keeper's task, and how to ask it. It looks at the repository every `poll`, if there is one, and ends with
/// `close`.
pub(super) fn keep(
    keeper: Keeper,
    poll: Option<Duration>,
    close: CancellationToken,
) -> (RepositoryHandle, impl Future<Output = ()>) {
    let (asked, orders) = mpsc::channel(MAX_ORDERS);
    let (view, engine) = (Arc::clone(keeper.view()), keeper.engine().clone());
    (RepositoryHandle { asked, view, engine }, run(keeper, poll, orders, close))
}

async fn run(mut keeper: Keeper, poll: Option<Duration>, mut orders: mpsc::Receiver<Asked>, close: CancellationToken) {
    let mut next_poll = poll.map(|poll| Instant::now() + poll);
    loop {
        let polled = async {
            match next_poll {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let asked = tokio::select! {
            () = close.cancelled() => return,
            asked = orders.recv() => match asked {
                Some(asked) => Some(asked),
                None => return,
            },
            () = polled => None,
            () = tokio::time::sleep(CLEAN_UP_INTERVAL), if keeper.has_retired() => {
                if keeper.has_unloaded() {
                    (keeper, ()) = blocking(keeper, |_| process::release_memory()).await;
                }
                continue;
            }
        };
        match asked {
            Some(asked) => keeper = carry_out(keeper, asked).await,
            None => {
                (keeper, ()) = blocking(keeper, |keeper| {
                    keeper.look();
                    keeper.work();
                })
                .await;
                next_poll = poll.map(|poll| Instant::now() + poll);
            }
        }
    }
}

/// Calls the keeper on a thread of its own.
async fn blocking<T: Send + 'static>(
    mut keeper: Keeper,
    call: impl FnOnce(&mut Keeper) -> T + Send + 'static,
) -> (Keeper, T) {
    on_a_thread_of_its_own(move || {
        let result = call(&mut keeper);
        (keeper, result)
    })
    .await
}

async fn carry_out(keeper: Keeper, asked: Asked) -> Keeper {
    let Asked { name, version, order, reply } = asked;
    let (mut keeper, concerned) = blocking(keeper, move |keeper| {
        keeper.look();
        keeper.order(&name, version, order)
    })
    .await;
    let concerned = match concerned {
        Ok(concerned) => concerned,
        Err(error) => {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error));
            return keeper;
        }
    };
    let began = Instant::now();
    while order != Order::Unload && !keeper.follower().rest(&concerned, Instant::now()) {
        if began.elapsed() > WRITING_PATIENCE {
            keeper.follower().fulfilled(&concerned);
            let _ = reply.send(Err(OrderError::Changing));
            return keeper;
        }
        tokio::time::sleep(SETTLE).await;
        (keeper, ()) = blocking(keeper, Keeper::look).await;
    }
    let (keeper, views) = blocking(keeper, move |keeper| {
        keeper.work();
        keeper.follower().fulfilled(&concerned);
        keeper.views_of(&concerned)
    })
    .await;
    let _ = reply.send(Ok(views));
    keeper
}

impl RepositoryHandle {
    /// Loads a model that has left memory.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    pub(super) async fn bring_back(&self, (name, version): VersionKey) -> Result<(), String> {
        match self.order(name, Some(version), Order::Load).await {
            Ok(views) => match views.into_iter().next() {
                Some(view) if view.state == State::Failed => Err(view.reason),
                _ => Ok(()),
            },
            Err(OrderError::Unknown) => Err("it is no longer in the repository".to_owned()),
            Err(OrderError::Refused(why)) => Err(why),
            Err(OrderError::Changing) => Err("its files are being written".to_owned()),
            Err(OrderError::Stopping) => Err("the server is stopping".to_owned()),
        }
    }
}
