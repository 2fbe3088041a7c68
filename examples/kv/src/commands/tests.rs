//! Tests of the commands, through their replies.

use super::*;
use crate::store::MAX_KEY;

struct Kv {
    store: Store,
    now_ms: u64,
}

impl Kv {
    fn new() -> Self {
        Self { store: Store::create(64 << 20).unwrap(), now_ms: 1_000_000 }
    }

    fn call(&mut self, line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.call_args(&args).0
    }

    fn call_args(&mut self, args: &[&[u8]]) -> (String, After) {
        let info = ServerInfo {
            version_label: "v9".into(),
            started: Instant::now(),
            connections: 1,
            accepted: 1,
            served: 0,
            in_doubt: 0,
            slowest_turn: Duration::ZERO,
            resumed_in: Duration::ZERO,
        };
        let mut out = Vec::new();
        let after = execute(&mut self.store, args, self.now_ms, &info, &mut out);
        (String::from_utf8(out).unwrap(), after)
    }

    fn all(&mut self, calls: &[(&str, &str)]) {
        for (line, expected) in calls {
            assert_eq!(self.call(line), *expected, "{line}");
        }
    }
}

const WRONG_INTEGER: &str = "-ERR value is not an integer or out of range\r\n";

#[test]
fn values_are_set_and_got() {
    Kv::new().all(&[
        ("GET a", "$-1\r\n"),
        ("SET a 1", "+OK\r\n"),
        ("get a", "$1\r\n1\r\n"),
        ("MSET b 2 c 3", "+OK\r\n"),
        ("MGET a x c", "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n3\r\n"),
        ("EXISTS a b x a", ":3\r\n"),
        ("DEL a x", ":1\r\n"),
        ("DBSIZE", ":2\r\n"),
        ("APPEND b 34", ":3\r\n"),
        ("STRLEN b", ":3\r\n"),
        ("STRLEN x", ":0\r\n"),
        ("TYPE b", "+string\r\n"),
        ("TYPE x", "+none\r\n"),
        ("FLUSHALL", "+OK\r\n"),
        ("DBSIZE", ":0\r\n"),
    ]);
}

#[test]
fn numbers_count_and_refuse_what_is_none() {
    Kv::new().all(&[
        ("INCR n", ":1\r\n"),
        ("INCRBY n 41", ":42\r\n"),
        ("DECR n", ":41\r\n"),
        ("DECRBY n 50", ":-9\r\n"),
        ("INCRBY n x", WRONG_INTEGER),
        ("SET s text", "+OK\r\n"),
        ("INCR s", WRONG_INTEGER),
        ("SET m 9223372036854775807", "+OK\r\n"),
        ("INCR m", "-ERR increment or decrement would overflow\r\n"),
        ("GET m", "$19\r\n9223372036854775807\r\n"),
        ("DECRBY n -9223372036854775808", WRONG_INTEGER),
    ]);
}

#[test]
fn set_takes_its_options_and_refuses_others() {
    let mut kv = Kv::new();
    kv.all(&[
        ("SET a 1 XX", "$-1\r\n"),
        ("SET a 1 NX", "+OK\r\n"),
        ("SET a 2 NX", "$-1\r\n"),
        ("SET a 3 XX PX 500", "+OK\r\n"),
        ("PTTL a", ":500\r\n"),
        ("SET a 4 KEEPTTL GET", "$1\r\n3\r\n"),
        ("PTTL a", ":500\r\n"),
        ("SET a 5 NX GET", "$1\r\n4\r\n"),
        ("GET a", "$1\r\n4\r\n"),
        ("SET a 1 NX XX", "-ERR syntax error\r\n"),
        ("SET a 1 EX", "-ERR syntax error\r\n"),
        ("SET a 1 EX 0", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET a 1 EX 9223372036854775807", "-ERR invalid expire time in 'set' command\r\n"),
        ("SET a 1 PX x", WRONG_INTEGER),
        ("SET a 1 WHAT", "-ERR syntax error\r\n"),
        ("SET a", "-ERR wrong number of arguments for 'set' command\r\n"),
        ("GET a", "$1\r\n4\r\n"),
    ]);
    kv.now_ms += 500;
    kv.all(&[
        ("GET a", "$-1\r\n"),
        ("PTTL a", ":-2\r\n"),
        ("SET a 6 KEEPTTL", "+OK\r\n"),
        ("TTL a", ":-1\r\n"),
    ]);
}

#[test]
fn keys_expire_when_told_to() {
    let mut kv = Kv::new();
    kv.all(&[
        ("SET a 1", "+OK\r\n"),
        ("EXPIRE a 10", ":1\r\n"),
        ("TTL a", ":10\r\n"),
        ("INCR a", ":2\r\n"),
        ("TTL a", ":10\r\n"),
        ("PERSIST a", ":1\r\n"),
        ("PERSIST a", ":0\r\n"),
        ("EXPIRE x 1", ":0\r\n"),
        ("PEXPIRE a 5", ":1\r\n"),
    ]);
    kv.now_ms += 5;
    kv.all(&[
        ("EXISTS a", ":0\r\n"),
        ("INCR a", ":1\r\n"),
        ("TTL a", ":-1\r\n"),
        ("EXPIRE a 0", ":1\r\n"),
    ]);
    kv.all(&[("EXISTS a", ":0\r\n"), ("KEYS *", "*0\r\n")]);
}

#[test]
fn all_keys_are_found_by_keys_and_scan() {
    let mut kv = Kv::new();
    for i in 0..300 {
        kv.call(&format!("SET key:{i} x"));
    }
    assert!(kv.call("KEYS *").starts_with("*300\r\n"));
    assert!(kv.call("KEYS key:1?").starts_with("*10\r\n"));
    let mut cursor = String::from("0");
    let mut found = std::collections::HashSet::new();
    loop {
        let reply = kv.call(&format!("SCAN {cursor} MATCH key:* COUNT 20"));
        let words: Vec<&str> = reply.split("\r\n").collect();
        cursor = words[2].to_owned();
        found.extend(
            words[3..]
                .iter()
                .filter(|word| word.starts_with("key:"))
                .map(|word| (*word).to_owned()),
        );
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(found.len(), 300);
    kv.all(&[("SCAN x", "-ERR invalid cursor\r\n"), ("SCAN 0 COUNT 0", "-ERR syntax error\r\n")]);
}

#[test]
fn tools_that_ask_around_get_answers() {
    let mut kv = Kv::new();
    kv.all(&[
        ("PING", "+PONG\r\n"),
        ("PING hi", "$2\r\nhi\r\n"),
        ("ECHO hi", "$2\r\nhi\r\n"),
        ("CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ("CONFIG GET appendonly", "*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"),
        ("COMMAND DOCS", "*0\r\n"),
        ("HELLO 3", "-NOPROTO unsupported protocol version\r\n"),
        ("CLIENT SETNAME x", "+OK\r\n"),
        ("SELECT 0", "+OK\r\n"),
        ("SELECT 1", "-ERR DB index is out of range\r\n"),
        ("NONSENSE", "-ERR unknown command 'NONSENSE'\r\n"),
        (
            "A-NAME-LONGER-THAN-ANY-COMMAND",
            "-ERR unknown command 'A-NAME-LONGER-THAN-ANY-COMMAND'\r\n",
        ),
    ]);
    assert!(kv.call("HELLO 2").starts_with("*8\r\n"));
    assert!(kv.call("INFO").contains("version_label:v9\r\n"));
    assert_eq!(kv.call_args(&[b"QUIT"]), ("+OK\r\n".into(), After::Close));
    assert_eq!(kv.call_args(&[b"SHUTDOWN", b"NOSAVE"]).1, After::Shutdown);
    assert_eq!(kv.call_args(&[]), (String::new(), After::Go));
}

#[test]
fn a_request_that_cannot_be_done_whole_changes_nothing() {
    let mut kv = Kv::new();
    let long = vec![b'k'; MAX_KEY + 1];
    let (reply, _) = kv.call_args(&[b"MSET", b"a", b"1", &long, b"2"]);
    assert_eq!(reply, "-ERR a key has at most 65536 bytes\r\n");
    kv.all(&[
        ("GET a", "$-1\r\n"),
        ("MSET a", "-ERR wrong number of arguments for 'mset' command\r\n"),
    ]);
}

#[test]
fn a_full_store_says_so_in_the_words_of_redis() {
    let mut kv = Kv { store: Store::create(1 << 20).unwrap(), now_ms: 0 };
    let (reply, _) = kv.call_args(&[b"SET", b"a", &vec![0; 2 << 20]]);
    assert!(reply.starts_with("-OOM command not allowed"), "{reply}");
    kv.all(&[("SET a 1", "+OK\r\n")]);
}
