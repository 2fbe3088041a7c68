//! POSIX message queues through a whole update with a carrier that copies. The tests say SKIPPED on a
//! kernel without them.

mod common;

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Before, across, refusal};
use luo_core::{Errno, Event};
use luo_sys::take_message;
use luo_sys::{QueueMessage, make_queue, open_queue, put_message, queue_attributes, remove_queue};
use rustix::fs::{Mode, OFlags, fchmod, fcntl_getfl, fcntl_setfl, fstat};

/// A queue of a test's own, whose name goes with it.
struct Queue(CString);

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = remove_queue(&self.0);
    }
}

impl Queue {
    fn name(&self) -> &CStr {
        &self.0
    }
}

fn new(most: u32, largest: u32) -> Option<(Queue, OwnedFd)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = CString::new(format!("/luo-test-{}-{number}", std::process::id())).unwrap();
    match make_queue(&name, 0o600, most, largest) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            println!("SKIPPED: a kernel without message queues");
            None
        }
        made => {
            let queue = Queue(name);
            Some((queue, made.unwrap()))
        }
    }
}

fn put(queue: &OwnedFd, priority: u32, text: &str) {
    put_message(queue, &message(priority, text), Duration::ZERO).unwrap();
}

fn message(priority: u32, text: &str) -> QueueMessage {
    QueueMessage { priority, bytes: text.into() }
}

fn drain(queue: &OwnedFd, largest: u32) -> Vec<QueueMessage> {
    std::iter::from_fn(|| take_message(queue, largest).unwrap()).collect()
}

fn sample(queue: &OwnedFd) -> Vec<QueueMessage> {
    for (priority, text) in [(1, "a"), (7, "urgent"), (1, "b"), (0, ""), (7, "too"), (1, "c")] {
        put(queue, priority, text);
    }
    let order = [(7, "urgent"), (7, "too"), (1, "a"), (1, "b"), (1, "c"), (0, "")];
    order.iter().map(|(priority, text)| message(*priority, text)).collect()
}

#[test]
fn in_another_kernel_a_queue_is_made_with_its_messages_in_their_order() {
    let Some((name, queue)) = new(9, 100) else { return };
    let expected = sample(&queue);
    fchmod(&queue, Mode::from_raw_mode(0o640)).unwrap();
    let writer = open_queue(name.name(), false, true).unwrap();
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    let flags = (fcntl_getfl(&queue).unwrap(), fcntl_getfl(&writer).unwrap());
    let mut before = Before::new(vec![queue, writer]).unwrap();
    before.keep().unwrap();
    let mut after = before.depart();
    // As in another kernel, where it is not there.
    remove_queue(name.name()).unwrap();
    // The one with the messages comes first, whoever is asked for.
    let writer = after.retrieve(2).unwrap();
    let queue = after.retrieve(1).unwrap();
    assert_eq!((fcntl_getfl(&queue).unwrap(), fcntl_getfl(&writer).unwrap()), flags);
    let attributes = queue_attributes(&queue).unwrap();
    assert_eq!((attributes.most, attributes.largest), (9, 100));
    assert_eq!(fstat(&queue).unwrap().st_mode & 0o7777, 0o640);
    assert_eq!(drain(&queue, 100), expected);
    put(&writer, 3, "goes on");
    assert_eq!(drain(&queue, 100), [message(3, "goes on")]);
    after.finish();
}

#[test]
fn in_the_same_boot_the_queue_is_there_and_nothing_is_in_it_twice() {
    let Some((_name, queue)) = new(9, 100) else { return };
    let expected = sample(&queue);
    let again = across(vec![queue]);
    assert_eq!(drain(&again[0], 100), expected);
}

#[test]
fn a_cancelled_update_leaves_all_messages_where_they_were() {
    let Some((_name, queue)) = new(9, 100) else { return };
    let expected = sample(&queue);
    let mut before = Before::new(vec![queue.try_clone().unwrap()]).unwrap();
    before.carrier.refuse_after.store(1, Ordering::Relaxed);
    assert_eq!(before.keep().unwrap_err().errno(), Errno::NoSpc);
    before.carrier.refuse_after.store(0, Ordering::Relaxed);
    before.keep().unwrap();
    before.event(Event::Cancel).unwrap();
    assert_eq!(drain(&queue, 100), expected);
}

#[test]
fn what_cannot_be_looked_at_safely_is_refused_and_nothing_is_lost() {
    let Some((name, queue)) = new(2, 100) else { return };
    put(&queue, 1, "one");
    put(&queue, 1, "other");
    let reason = refusal(queue.try_clone().unwrap());
    assert!(reason.contains("OpNotSupp") && reason.contains("is full"), "{reason}");
    assert_eq!(take_message(&queue, 100).unwrap(), Some(message(1, "one")));
    let copy = queue.try_clone().unwrap();
    remove_queue(name.name()).unwrap();
    assert!(refusal(copy).contains("under its name"));
    assert_eq!(drain(&queue, 100), [message(1, "other")]);
}

#[test]
fn damage_or_another_queue_of_that_name_is_an_error_and_leaves_no_queue() {
    for damage in [true, false] {
        let Some((name, queue)) = new(9, 100) else { return };
        sample(&queue);
        let mut before = Before::new(vec![queue]).unwrap();
        before.keep().unwrap();
        if damage {
            let mut kept = before.carrier.kept.lock().unwrap();
            let urgent = |bytes: &&mut Vec<u8>| bytes.windows(6).any(|six| six == b"urgent");
            kept.values_mut().find(urgent).unwrap().pop();
        }
        let mut after = before.depart();
        remove_queue(name.name()).unwrap();
        if !damage {
            drop(make_queue(name.name(), 0o600, 3, 30).unwrap());
        }
        let expected = if damage { Errno::Inval } else { Errno::NoEnt };
        assert_eq!(after.retrieve(1).unwrap_err().errno(), expected);
        assert_eq!(open_queue(name.name(), true, false).is_err(), damage);
    }
}
