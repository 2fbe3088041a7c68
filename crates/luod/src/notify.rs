//! What luod tells its service manager, where there is one that listens (`NOTIFY_SOCKET`).

use sd_notify::NotifyState;

/// luod serves.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
