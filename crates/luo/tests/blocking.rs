//! The blocking API against a luod that does what the tests say.

mod fake;

/// What the scenarios use, as this API has it.
mod api {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    pub(crate) use luo::{Manager, Participant, Session};

    /// Runs a scenario, in which nothing is awaited.
    pub(crate) fn run<T>(scenario: impl Future<Output = T>) -> T {
        match pin!(scenario).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(end) => end,
            Poll::Pending => panic!("a scenario of the blocking API waits"),
        }
    }
}

/// The end of a call of this API.
macro_rules! wait {
    ($call:expr) => {
        $call
    };
}

mod scenarios;

use std::thread;

use fake::*;
use serde_json::json;

#[test]
fn a_long_call_of_one_thread_holds_up_no_other() {
    let luod = Luod::new();
    let manager = api::Manager::connect(luod.options()).unwrap();
    thread::scope(|scope| {
        let mut long = luod.accept();
        let upgrade = scope.spawn(|| manager.upgrade(None, PATIENCE, false));
        long.take("io.luo.Upgrade");
        let short = scope.spawn(|| manager.status());
        let mut other = luod.accept();
        other.take("io.luo.GetStatus");
        other.reply(status("updated", None));
        assert_eq!(short.join().unwrap().unwrap().state, luo::State::Updated);
        long.reply(json!({ "before": "1", "after": "2" }));
        assert_eq!(upgrade.join().unwrap().unwrap().after, "2");
    });
}
