//! A client on this machine that counts in kv in the guest, on one connection.
//!
//! It knows nothing of kernels, and never makes its connection anew: the connection goes on under the
//! next kernel, or the client has lost it. A request that was lost or done twice would show in the next
//! answer. How long it waited is measured on a clock that no kexec stops.
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
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(20);
/// How long one question that is asked once may take.
const ONCE: Duration = Duration::from_secs(30);
const KEY: &str = "demo:counted";

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
    /// Why the connection came to its end before its time.
    pub(super) lost: Option<String>,
    /// The first answer that was not the next number.
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
    /// Connects, and begins to count.
    pub(super) fn start(kv: SocketAddr) -> Result<Self> {
        let count = Client::connect(kv, PATIENCE).and_then(|mut client| {
            client.next(1)?;
            Ok(client)
        });
        let client = count.context(|| "begin to count in kv".into())?;
        let began = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("asker".into())
            .spawn(move || count_until(client, began, &told))
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

    /// Waits for its own end, which comes with the first failure.
    #[cfg(test)]
    fn ended(mut self) -> Seen {
        self.thread.take().expect("it runs").join().expect("it ends")
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

fn count_until(mut client: Client, began: Instant, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut next = 2;
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        match client.next(next) {
            Ok(()) => {
                seen.answers.push(Answer { at: began.elapsed(), took: asked.elapsed() });
                next += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                seen.wrong = Some(error.to_string());
                break;
            }
            Err(error) => {
                seen.lost = Some(format!("request {next}: {error}"));
                break;
            }
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

    /// Counts one further, which has to come to this.
    fn next(&mut self, count: u64) -> io::Result<()> {
        let said = self.ask(&format!("*2\r\n{}{}", bulk("INCR"), bulk(KEY)))?;
        if said == count.to_string() {
            return Ok(());
        }
        let what = format!("{said:?} instead of {count}");
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// One request, and its answer without the marks of its type.
    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        // An answer is short; who sends more is not kv.
        (&mut self.0).take(4096).read_line(&mut line)?;
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let Some(line) = line.strip_suffix("\r\n") else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "half an answer, or none"));
        };
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

    /// Answers one connection, request by request.
    fn counter(answers: Vec<&'static str>) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            for answer in answers {
                let mut request = [0; 256];
                let _ = stream.read(&mut request).expect("its request");
                stream.write_all(answer.as_bytes()).expect("the answer");
            }
        });
        (address, served)
    }

    #[test]
    fn an_answer_that_is_not_the_next_number_is_remembered() {
        let (address, served) = counter(vec![":1\r\n", ":2\r\n", ":2\r\n"]);
        let asker = Asker::start(address).expect("it counts");
        served.join().expect("all were answered");
        let seen = asker.ended();
        assert_eq!(seen.answers.len(), 1);
        assert!(seen.wrong.is_some_and(|wrong| wrong.contains("instead of 3")));
        assert_eq!(seen.lost, None);
    }

    #[test]
    fn a_connection_that_ends_is_lost_and_not_made_again() {
        let (address, served) = counter(vec![":1\r\n", ":2\r\n"]);
        let asker = Asker::start(address).expect("it counts");
        served.join().expect("all were answered");
        let seen = asker.ended();
        assert!(seen.lost.is_some_and(|lost| lost.starts_with("request 3")));
        assert_eq!(seen.wrong, None);
    }
}
