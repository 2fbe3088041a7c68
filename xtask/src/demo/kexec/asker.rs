//! A client on this machine that asks kv in the guest for one value, again and again.
//!
//! It knows nothing of kernels: a request that is not answered in time costs it its connection, and
//! it makes a new one. So what it writes down is how long a client was without kv, on a clock that no
//! kexec stops.
//!
//! Invariants: every answer is compared; no request waits for longer than [`PATIENCE`].

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crate::failure::{Context as _, Failed, Result};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(250);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(20);
/// How long one question that is asked once may take.
const ONCE: Duration = Duration::from_secs(30);
const KEY: &str = "demo:asked";
const VALUE: &str = "put in before the kernel was replaced";

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Answer {
    /// When it was there, since the asker began.
    pub(super) at: Duration,
    /// Since it was asked for.
    pub(super) took: Duration,
}

/// What it saw.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) answers: Vec<Answer>,
    /// Requests and connections that came to nothing.
    pub(super) unanswered: u64,
    /// The first answer that was not the value.
    pub(super) wrong: Option<String>,
}

impl Seen {
    /// The longest time without an answer: from the last one before it to the first one after.
    pub(super) fn gap(&self) -> Option<(Duration, Duration)> {
        let pairs = self.answers.windows(2).filter_map(|pair| match pair {
            [before, after] => Some((before.at, after.at)),
            _ => None,
        });
        pairs.max_by_key(|(before, after)| after.saturating_sub(*before))
    }
}

/// The thread.
#[derive(Debug)]
pub(super) struct Asker {
    began: Instant,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

impl Asker {
    /// Puts in the value, and begins to ask for it.
    pub(super) fn start(kv: SocketAddr) -> Result<Self> {
        let put = format!("*3\r\n{}{}{}", bulk("SET"), bulk(KEY), bulk(VALUE));
        let said = once(kv, &put)?;
        if said != "OK" {
            return Err(Failed::new(format!("kv does not take a value: {said}")));
        }
        let began = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("asker".into())
            .spawn(move || ask_until(kv, began, &told))
            .context(|| "start a thread".into())?;
        Ok(Self { began, stop, thread: Some(thread) })
    }

    /// When it began, on a clock that others have as well.
    pub(super) fn origin(&self) -> SystemTime {
        SystemTime::now() - self.began.elapsed()
    }

    /// Since it began.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| Failed::new("the asker has ended"))?;
        thread.join().map_err(|_| Failed::new("the asker's thread panicked"))
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it saw is of no interest any more.
            let _ = thread.join();
        }
    }
}

fn ask_until(kv: SocketAddr, began: Instant, stop: &AtomicBool) -> Seen {
    let request = format!("*2\r\n{}{}", bulk("GET"), bulk(KEY));
    let mut seen = Seen::default();
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let answered = match client.take() {
            Some(client) => Ok(client),
            None => Client::connect(kv, PATIENCE),
        }
        .and_then(|mut client: Client| Ok((client.ask(&request)?, client)));
        match answered {
            Ok((value, same)) => {
                if value != VALUE && seen.wrong.is_none() {
                    seen.wrong = Some(value);
                }
                seen.answers.push(Answer { at: began.elapsed(), took: asked.elapsed() });
                client = Some(same);
            }
            Err(_) => seen.unanswered += 1,
        }
        thread::sleep(PAUSE);
    }
    seen
}

/// How many keys kv has.
pub(super) fn keys(kv: SocketAddr) -> Result<u64> {
    let said = once(kv, &format!("*1\r\n{}", bulk("DBSIZE")))?;
    said.parse().map_err(|_| Failed::new(format!("kv does not say how many keys it has: {said}")))
}

fn once(kv: SocketAddr, request: &str) -> Result<String> {
    Client::connect(kv, ONCE).and_then(|mut client| client.ask(request)).context(|| "ask kv".into())
}

fn bulk(word: &str) -> String {
    format!("${}\r\n{word}\r\n", word.len())
}

/// One connection.
#[derive(Debug)]
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(kv: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&kv, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// One request, and its answer without the marks of its type.
    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        // An answer is short; who sends more is not kv.
        (&mut self.0).take(4096).read_line(&mut line)?;
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let line = line.strip_suffix("\r\n").ok_or_else(|| bad("half an answer"))?;
        let Some(length) = line.strip_prefix('$') else {
            return Ok(line.get(1..).unwrap_or_default().to_owned());
        };
        let Ok(length) = length.parse::<u16>() else { return Ok(format!("no value ({line})")) };
        let mut value = vec![0; usize::from(length) + 2];
        self.0.read_exact(&mut value)?;
        value.truncate(usize::from(length));
        String::from_utf8(value).map_err(|_| bad("not text"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn the_gap_is_the_longest_time_without_an_answer() {
        let at = |ms| Answer { at: Duration::from_millis(ms), took: Duration::from_millis(1) };
        let seen = Seen { answers: vec![at(10), at(30), at(900), at(950)], ..Seen::default() };
        assert_eq!(seen.gap(), Some((Duration::from_millis(30), Duration::from_millis(900))));
        assert_eq!(Seen { answers: vec![at(10)], ..Seen::default() }.gap(), None);
    }

    /// Answers one connection after the other, each to one request, with what it is given.
    fn kv(answers: Vec<&'static str>) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let served = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; 256];
                let _ = stream.read(&mut request).expect("its request");
                stream.write_all(answer.as_bytes()).expect("the answer");
            }
        });
        (address, served)
    }

    #[test]
    fn keys_are_counted_and_what_is_no_count_is_an_error() {
        let (address, served) = kv(vec![":42\r\n", "-ERR loading\r\n"]);
        assert_eq!(keys(address).expect("a count"), 42);
        assert!(keys(address).expect_err("no count").chain().contains("ERR loading"));
        served.join().expect("all were served");
    }

    #[test]
    fn a_wrong_answer_is_remembered_and_a_lost_connection_is_made_again() {
        let (address, served) = kv(vec!["+OK\r\n", "$5\r\nother\r\n", "$5\r\nlater\r\n"]);
        let asker = Asker::start(address).expect("kv takes the value");
        // The last of them has been answered.
        served.join().expect("all were served");
        let seen = asker.stop().expect("what it saw");
        assert_eq!(seen.wrong.as_deref(), Some("other"));
        assert!(seen.unanswered >= 1, "{seen:?}");
    }
}
