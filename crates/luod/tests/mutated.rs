//! What comes from clients and workers, with bytes changed: no panic, and what is kept adds up.
//!
//! The bounded, repeatable form of the fuzz targets `server_input` and `keeper_slots`.

use std::os::fd::OwnedFd;

use luo_abi::keeper::{Entry, Header, entry_flag, flag, op};
use luod::keeper::fuzzing::Held;
use luod::worker::fuzzing::Server;
use zerocopy::IntoBytes;

const INPUTS: usize = 100_000;
/// Inputs that one server takes, one after the other.
const IN_A_ROW: usize = 500;

/// A small generator of random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Changes, removes, doubles or inserts a few bytes.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            let length = 1 + self.below(8.min(bytes.len() - at));
            match self.below(6) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = *self.one(b"\0\"{}[],:0-9e.\\u\xff "),
                2 => drop(bytes.drain(at..at + length)),
                3 => {
                    let part = bytes[at..at + length].to_vec();
                    bytes.splice(at..at, part);
                }
                4 => bytes.truncate(at),
                _ => {
                    let number = *self.one(&["-1", "18446744073709551616", "null", "1e9", "true"]);
                    bytes.splice(at..at, number.bytes());
                }
            }
        }
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

const CALLS: &[&str] = &[
    r#"{"method":"io.luo.GetStatus"}"#,
    r#"{"method":"io.luo.ListSessions","parameters":{}}"#,
    r#"{"method":"io.luo.ListFiles","parameters":{"session":"outgoing"},"more":true}"#,
    r#"{"method":"io.luo.CreateSession","parameters":{"name":"new","policy":{"on_close":"keep","ttl_seconds":1},"request":7}}"#,
    r#"{"method":"io.luo.CreateSession","parameters":{"name":"other","policy":{"on_close":"release"}}}"#,
    r#"{"method":"io.luo.ClaimSession","parameters":{"name":"outgoing","wait_milliseconds":0,"request":8}}"#,
    r#"{"method":"io.luo.ClaimSession","parameters":{"name":"new","wait_milliseconds":1000},"oneway":true}"#,
    r#"{"method":"io.luo.ReleaseSession","parameters":{"name":"new"}}"#,
    r#"{"method":"io.luo.Prepare"}"#,
    r#"{"method":"io.luo.Freeze"}"#,
    r#"{"method":"io.luo.Cancel"}"#,
    r#"{"method":"io.luo.Rehearse"}"#,
    r#"{"method":"io.luo.Finish","parameters":{"unclaimed":"carry"}}"#,
    r#"{"method":"io.luo.Upgrade","parameters":{"deadline_milliseconds":5,"keeper":true}}"#,
    r#"{"method":"io.luo.GetHandover"}"#,
    r#"{"method":"io.luo.Watch","more":true}"#,
    r#"{"method":"io.luo.Participate","parameters":{"name":"db","required":false,"deadline_milliseconds":3},"more":true}"#,
    r#"{"method":"io.luo.Answer","parameters":{"participant":1,"call":2,"data":3}}"#,
    r#"{"method":"org.varlink.service.GetInfo"}"#,
    r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.luo"}}"#,
    r#"{"method":"io.luo.Session.GetInfo"}"#,
    r#"{"method":"io.luo.Session.Preserve","parameters":{"count":2,"tokens":[9,10],"required":false,"request":9}}"#,
    r#"{"method":"io.luo.Session.Preserve","parameters":{"count":1}}"#,
    r#"{"method":"io.luo.Session.Duplicate","parameters":{"original":1,"token":12,"required":false,"request":12}}"#,
    r#"{"method":"io.luo.Session.Unpreserve","parameters":{"tokens":[1,9,10],"request":10}}"#,
    r#"{"method":"io.luo.Session.Retrieve","parameters":{"tokens":[1,2,3]}}"#,
    r#"{"method":"io.luo.Session.Prepare"}"#,
    r#"{"method":"io.luo.Session.Freeze"}"#,
    r#"{"method":"io.luo.Session.Cancel"}"#,
    r#"{"method":"io.luo.Session.Finish","parameters":{"unclaimed":"carry","carry_reclaimed":true,"request":11}}"#,
    r#"{"method":"io.luo.Session.Release"}"#,
];

/// Replies, and how many of them are errors.
fn answers(seed: u64, inputs: usize) -> (usize, usize) {
    let mut random = Random(seed);
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..inputs / IN_A_ROW {
        let server = Server::new().expect("a worker's state");
        for _ in 0..IN_A_ROW {
            let calls: Vec<&str> = (0..1 + random.below(2)).map(|_| *random.one(CALLS)).collect();
            // Mostly where the first call belongs; see `Server::take`.
            let manager = u8::from(!calls[0].contains("Session.")) << 1;
            let kind = random.next() as u8;
            let kind = if random.below(10) == 0 { kind } else { kind & !2 | manager };
            let mut input = calls.join("\0").into_bytes();
            input.push(0);
            random.mutate(&mut input);
            input.insert(0, kind);
            for reply in server.take(&input).expect("a socket pair") {
                let text: serde_json::Value = serde_json::from_slice(&reply).expect("a reply");
                answered += 1;
                refused += usize::from(text["error"].is_string());
            }
        }
        assert!(server.is_sound());
    }
    (answered, refused)
}

#[test]
fn clients_input_with_changed_bytes_is_answered_and_the_state_stays_sound() {
    let (answered, refused) = std::thread::scope(|scope| {
        let parts: Vec<_> =
            (0..4).map(|seed| scope.spawn(move || answers(seed, INPUTS / 4))).collect();
        parts.into_iter().fold((0, 0), |(answered, refused), part| {
            let (more, of_them) = part.join().expect("no panic");
            (answered + more, refused + of_them)
        })
    });
    // Both happen, or the test has stopped to test anything.
    println!("{answered} replies, {refused} of them errors");
    assert!(refused > INPUTS / 10 && answered - refused > INPUTS / 10, "{answered} {refused}");
}

fn message(random: &mut Random) -> Vec<u8> {
    let (mut entries, mut body) = (Vec::new(), Vec::new());
    for _ in 0..random.below(6) {
        let flags = *random.one(&[0, 0, 0, entry_flag::KEEP_FDS, entry_flag::DELETE]);
        let record = vec![7; if flags == entry_flag::DELETE { 0 } else { random.below(200) }];
        let fds = if flags == 0 { random.below(4) } else { 0 };
        entries.push(Entry {
            key: (1 + random.below(60) as u64).into(),
            length: (record.len() as u32).into(),
            fds: (fds as u16).into(),
            flags: flags.into(),
        });
        body.extend(record);
    }
    let mut header = Header::new(1, op::CHANGE, 1);
    header.count = (entries.len() as u32).into();
    header.flags = (*random.one(&[0, 0, flag::MORE])).into();
    [header.as_bytes(), entries.as_bytes(), &body].concat()
}

#[test]
fn workers_messages_with_changed_bytes_leave_the_keeper_with_what_it_counts() {
    let null = OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null"));
    let mut random = Random(2);
    let (mut taken, mut refused) = (0_usize, 0_usize);
    let mut held = Held::default();
    for _ in 0..INPUTS {
        let mut bytes = message(&mut random);
        if random.below(2) == 0 {
            random.mutate(&mut bytes);
        }
        match held.take(&bytes, &null) {
            Some(Ok(())) => taken += 1,
            Some(Err(_)) => refused += 1,
            None => {}
        }
    }
    println!("{taken} batches taken, {refused} refused");
    assert!(taken > INPUTS / 20 && refused > INPUTS / 100, "{taken} {refused}");
}
