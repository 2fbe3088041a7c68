//! The worker's end of the wire against a real keeper.

mod rig;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use luo_abi::keeper::{Role, key};
use luo_carriers::{HostFile, KeeperCarrier, Slot, Slots};
use luo_core::{Carrier, Keep, Recall};
use luod::store::{Attached, Batch, Event, KeeperStore, Store, StoreError, Table, Upgrade};
use rig::{Conditions, DEADLINE, Rig, Worker, connected, pipe};

#[test]
#[ignore = "a part that another test plays"]
fn role_keeper() {
    rig::role_keeper();
}

#[test]
#[ignore = "a part that another test plays"]
fn role_worker() {
    rig::role_worker();
}

#[test]
#[ignore = "a part that another test plays"]
fn role_check() {
    rig::role_check();
}

#[test]
#[ignore = "a part that another test plays"]
fn role_resume() {
    rig::role_resume();
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("in time") });
}

async fn attach(worker: &Worker) -> Attached {
    KeeperStore::attach(worker.socket.try_clone().unwrap()).await.unwrap()
}

async fn loaded(attached: &mut Attached) -> BTreeMap<u64, Slot> {
    attached.store.load().await.unwrap();
    let mut slots = BTreeMap::new();
    loop {
        match attached.events.next().await {
            Event::Slot(key, slot) => assert!(slots.insert(key, slot).is_none()),
            Event::Loaded => return slots,
            event => panic!("{event:?}"),
        }
    }
}

fn file(fd: &OwnedFd) -> HostFile {
    HostFile::from(fd.try_clone().unwrap())
}

#[test]
fn a_large_batch_is_kept_whole_and_loaded_by_the_next_worker() {
    run(async {
        let rig = Rig::new();
        let (reader, writer) = pipe();
        let files = [file(&writer), file(&writer), file(&writer)];
        let worker = rig.worker();
        let attached = attach(&worker).await;
        assert_eq!((attached.role, attached.incarnation), (Role::Primary, 1));
        assert_eq!(attached.listeners.len(), 1);
        assert_eq!(attached.store.limits().slots, 10_000);
        let mut batch = Batch::with_capacity(2000, 150);
        for key in 1..=2000_u64 {
            batch.put(key, &[key as u8; 150], &files[..(key % 4) as usize]).unwrap();
        }
        batch.rewrite(7, b"seven").unwrap();
        batch.delete(8);
        attached.store.submit(batch).await.unwrap();
        attached.store.ready().await.unwrap();
        drop(attached);
        worker.kill();
        let worker = rig.worker();
        let mut attached = attach(&worker).await;
        let slots = loaded(&mut attached).await;
        assert_eq!(slots.len(), 1999);
        for (key, slot) in &slots {
            assert_eq!(slot.files.len() as u64, key % 4);
            match key {
                7 => assert_eq!(slot.record, b"seven"),
                _ => assert_eq!(slot.record, [*key as u8; 150]),
            }
        }
        assert!(connected(&slots[&1999].files[2].try_clone_fd().unwrap(), &reader));
    });
}

#[test]
fn the_keeper_retrieves_from_nothing_but_the_device_and_holds_nothing_of_what_it_refuses() {
    run(async {
        let rig = Rig::new();
        let worker = rig.worker();
        let mut attached = attach(&worker).await;
        let name = luo_abi::liveupdate::ioctl::Name::new(b"luod").unwrap();
        let mut batch = Batch::new();
        batch.put(7, b"there", []).unwrap();
        attached.store.submit(batch).await.unwrap();
        for (key, errno) in [(7, 17), (8, 19)] {
            let (reader, _writer) = pipe();
            match attached.store.retrieve(key, reader, name).await {
                Err(StoreError::Refused { errno: given }) => assert_eq!(given, errno),
                answer => panic!("{answer:?}"),
            }
        }
        let slots = loaded(&mut attached).await;
        assert_eq!(slots.keys().copied().collect::<Vec<_>>(), [7]);
        assert_eq!(slots[&7].record, b"there");
    });
}

#[test]
fn batches_are_pipelined_and_answered_each_with_its_own_result() {
    run(async {
        let rig = Rig::with(Conditions { limits: [10_000, 10_000, 3000], ..Conditions::default() });
        let worker = rig.worker();
        let mut attached = attach(&worker).await;
        let mut tickets = Vec::new();
        for key in 1..=1000_u64 {
            let mut batch = Batch::new();
            // Every tenth is too much.
            let record = vec![1; if key % 10 == 0 { 3000 } else { 1 }];
            batch.put(key, &record, []).unwrap();
            tickets.push((key, attached.store.submit(batch)));
        }
        for (key, ticket) in tickets {
            match ticket.await {
                Ok(()) => assert_ne!(key % 10, 0),
                Err(StoreError::Refused { errno: 28 }) => assert_eq!(key % 10, 0),
                Err(error) => panic!("{error}"),
            }
        }
        attached.store.room().await;
        assert_eq!(loaded(&mut attached).await.len(), 900);
    });
}

#[test]
fn what_does_not_fit_into_a_message_is_refused_and_leaves_the_batch_as_it_was() {
    let (_reader, writer) = pipe();
    let files = vec![file(&writer); 254];
    let mut batch = Batch::new();
    let large = vec![0; 128 * 1024];
    assert!(matches!(batch.put(1, &large, []), Err(StoreError::TooLarge { .. })));
    assert!(matches!(batch.put(1, &[], &files), Err(StoreError::TooLarge { fds: 254, .. })));
    assert!(matches!(batch.rewrite(1, &large), Err(StoreError::TooLarge { .. })));
    assert!(batch.is_empty() && batch.changes().next().is_none());
}

#[test]
fn submitting_never_waits_and_room_tells_when_enough_is_sent() {
    run(async {
        let rig =
            Rig::with(Conditions { limits: [100_000, 100, 100_000_000], ..Conditions::default() });
        let worker = rig.worker();
        let mut attached = attach(&worker).await;
        let mut tickets = Vec::new();
        // Far more than any socket buffers: 10 MB.
        for part in 0..100_u64 {
            let mut batch = Batch::new();
            for key in 1..=100 {
                batch.put(part * 1000 + key, &[7; 1000], []).unwrap();
            }
            tickets.push(attached.store.submit(batch));
        }
        attached.store.room().await;
        for ticket in tickets {
            ticket.await.unwrap();
        }
        assert_eq!(loaded(&mut attached).await.len(), 10_000);
    });
}

#[test]
fn when_the_keeper_dies_every_ticket_and_the_events_say_so() {
    run(async {
        let rig = Rig::new();
        let worker = rig.worker();
        let mut attached = attach(&worker).await;
        rig.signal(rustix::process::Signal::KILL);
        let error = loop {
            let mut batch = Batch::new();
            batch.put(1, b"", []).unwrap();
            if let Err(error) = attached.store.submit(batch).await {
                break error;
            }
        };
        assert!(matches!(error, StoreError::Lost), "{error}");
        assert!(matches!(attached.events.next().await, Event::Lost(StoreError::Lost)));
        assert!(matches!(attached.store.ready().await, Err(StoreError::Lost)));
        attached.store.room().await;
    });
}

#[test]
fn what_is_no_keeper_is_said_so() {
    run(async {
        let (one, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        other.send(b"hello, and much more than a header of a message of the wire").unwrap();
        let error = KeeperStore::attach(one.into()).await.unwrap_err();
        assert!(matches!(error, StoreError::Protocol(_)), "{error}");
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            KeeperStore::attach(file.into()).await.unwrap_err(),
            StoreError::System { .. }
        ));
    });
}

#[test]
fn an_upgrade_goes_through_two_stores() {
    run(async {
        let rig = Rig::new();
        let worker = rig.worker();
        let mut old = attach(&worker).await;
        let mut batch = Batch::new();
        batch.put(1, b"1", []).unwrap();
        batch.put(2, b"2", []).unwrap();
        old.store.submit(batch).await.unwrap();
        old.store.ready().await.unwrap();
        let (_, program) = rig.program("next");
        old.store.upgrade(program, Duration::from_secs(30), Upgrade::Both).await.unwrap();
        let candidate = rig.worker();
        let mut new = attach(&candidate).await;
        assert_eq!(new.role, Role::Candidate);
        let mut slots = loaded(&mut new).await;
        new.store.ready().await.unwrap();
        assert!(matches!(old.events.next().await, Event::Quiesce));
        let mut batch = Batch::new();
        batch.put(3, b"3", []).unwrap();
        batch.delete(1);
        old.store.submit(batch).await.unwrap();
        old.store.quiesced().await.unwrap();
        loop {
            match new.events.next().await {
                Event::Slot(key, slot) => drop(slots.insert(key, slot)),
                Event::Removed(key) => drop(slots.remove(&key)),
                Event::Go => break,
                event => panic!("{event:?}"),
            }
        }
        new.store.ready().await.unwrap();
        assert!(matches!(old.events.next().await, Event::Retire));
        worker.exit(0);
        match new.events.next().await {
            Event::Upgraded { worker: true, keeper: true, reason } => assert_eq!(reason, ""),
            event => panic!("{event:?}"),
        }
        assert_eq!(slots.keys().copied().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(loaded(&mut new).await.len(), 2);
    });
}

#[test]
fn a_refusal_reaches_the_old_worker_with_its_reason() {
    run(async {
        let rig = Rig::new();
        let worker = rig.worker();
        let mut old = attach(&worker).await;
        old.store.ready().await.unwrap();
        let (_, program) = rig.program("next");
        old.store.upgrade(program, Duration::from_secs(30), Upgrade::Worker).await.unwrap();
        let candidate = rig.worker();
        let new = attach(&candidate).await;
        let _ = new.store.refuse("no handler for tcp-v9").await;
        match old.events.next().await {
            Event::Resume { reason } => assert!(reason.contains("no handler for tcp-v9")),
            event => panic!("{event:?}"),
        }
    });
}

#[test]
fn the_carrier_keeps_through_the_keeper_what_the_next_worker_recalls() {
    run(async {
        let rig = Rig::new();
        let (reader, writer) = pipe();
        let worker = rig.worker();
        let attached = attach(&worker).await;
        let table = Arc::new(Table::new(Arc::new(attached.store)));
        let carrier = KeeperCarrier::new(Arc::clone(&table)).unwrap();
        let registered = file(&writer);
        let own = table.allocate(9);
        table.put(own, b"registered", &[&registered]).unwrap();
        registered.set_slot(Some(own));
        let alias = carrier.keep_live(&registered).unwrap();
        let live = carrier.keep_live(&file(&writer)).unwrap();
        let bytes = carrier.keep_bytes(&[5; 100_000]).unwrap();
        let dropped = carrier.keep_bytes(b"cancelled").unwrap();
        carrier.forget(dropped);
        carrier.commit(b"the handover").unwrap();
        table.submit().await.unwrap();
        let used = table.used();
        worker.kill();

        let worker = rig.worker();
        let mut attached = attach(&worker).await;
        let slots = loaded(&mut attached).await;
        let table = Arc::new(Table::new(Arc::new(attached.store)));
        for (key, slot) in slots {
            table.loaded(key, Some(slot));
        }
        assert_eq!(table.used(), used);
        let carrier = KeeperCarrier::new(Arc::clone(&table)).unwrap();
        assert_eq!(carrier.committed().unwrap().unwrap(), b"the handover");
        assert_eq!(carrier.bytes(bytes).unwrap(), [5; 100_000]);
        for handle in [alias, live] {
            let file = carrier.live(handle).unwrap();
            assert!(connected(&file.try_clone_fd().unwrap(), &reader));
        }
        let slot = table.get(own).unwrap();
        assert_eq!(slot.files[0].slot(), Some(own), "it is known where it sits");
        assert!(carrier.bytes(dropped).is_err());
        assert!(key::number(table.allocate(1)) > key::number(alias.0));
        carrier.forget_slot(own);
        carrier.release(alias);
        carrier.release(live);
        carrier.release(bytes);
        carrier.retire().unwrap();
        table.submit().await.unwrap();
        assert_eq!(table.used().slots, 0);
        let _ = slot.files[0].as_fd();
    });
}

#[test]
fn the_table_refuses_at_the_keepers_limits() {
    run(async {
        let rig = Rig::with(Conditions { limits: [2, 1, 10], ..Conditions::default() });
        let worker = rig.worker();
        let attached = attach(&worker).await;
        let table = Table::new(Arc::new(attached.store));
        let (_reader, writer) = pipe();
        let file = file(&writer);
        let refused = |result: Result<(), luo_core::Failure>| {
            let failure = result.unwrap_err();
            assert_eq!(failure.errno(), luo_core::Errno::NoSpc);
            failure.to_string()
        };
        table.put(1, &[1; 4], &[&file]).unwrap();
        assert!(refused(table.put(2, &[], &[&file])).contains("limit of 1"));
        assert!(refused(table.put(2, &[0; 7], &[])).contains("limit of 10"));
        table.put(2, &[2; 5], &[]).unwrap();
        assert!(refused(table.put(3, &[], &[])).contains("limit of 2"));
        assert!(refused(table.put(2, &[], &[])).contains("limit of 2"), "new, and twice");
        table.submit().await.unwrap();
        // At the limits what is there can be rewritten as far as there is room beside it.
        table.rewrite(2, b"x").unwrap();
        assert!(refused(table.rewrite(2, b"y")).contains("limit of 10"));
        assert_eq!(table.rewrite(9, b"").unwrap_err().errno(), luo_core::Errno::NoEnt);
        table.forget(1);
        table.submit().await.unwrap();
        table.put(3, &[3; 9], &[&file]).unwrap();
        table.submit().await.unwrap();
        let used = table.used();
        assert_eq!((used.slots, used.fds, used.bytes), (2, 1, 10));
        // Nothing to submit is nothing to wait for.
        table.submit().await.unwrap();
    });
}
