//! A client of kv that counts: what is lost or done twice shows in the next answer.
//!
//! Invariants: one connection, which is never made anew; no answer waits for longer than the
//! deadline; where the count has got to is written whole or not at all.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{DEADLINE, Failed, system};

/// Answers between two looks at the files.
const ROUND: u64 = 20;

/// Counts until `stop` is there.
pub(super) fn count(address: SocketAddr, counted: &Path, stop: &Path) -> Result<(), Failed> {
    let doing = || system("count by one connection");
    let stream = TcpStream::connect_timeout(&address, DEADLINE).map_err(doing())?;
    stream.set_nodelay(true).map_err(doing())?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(doing())?;
    stream.set_write_timeout(Some(DEADLINE)).map_err(doing())?;
    let mut answers = BufReader::new(stream.try_clone().map_err(doing())?);
    let mut longest = Duration::ZERO;
    let mut count = 0;
    let mut line = String::new();
    while count % ROUND != 0 || !stop.exists() {
        let began = Instant::now();
        (&stream).write_all(b"INCR counted\r\n").map_err(doing())?;
        line.clear();
        answers.read_line(&mut line).map_err(doing())?;
        longest = longest.max(began.elapsed());
        count += 1;
        if line.trim_end() != format!(":{count}") {
            return Err(Failed::Wrong(format!("{line:?} is the answer to request {count}")));
        }
        if count % ROUND == 0 {
            let new = counted.with_extension("new");
            fs::write(&new, count.to_string()).map_err(system("say how far it is"))?;
            fs::rename(&new, counted).map_err(system("say how far it is"))?;
        }
    }
    println!("{count} numbered requests, the longest answer took {:.1} s", longest.as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    /// Counts against a server that gives these answers.
    fn against(answers: Vec<u64>) -> (Result<(), Failed>, Option<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (counted, stop) = (dir.path().join("counted"), dir.path().join("stop"));
        let stopped = stop.clone();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut requests = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            for (done, answer) in (1..).zip(answers) {
                line.clear();
                if requests.read_line(&mut line).unwrap() == 0 {
                    return;
                }
                if done == ROUND {
                    fs::write(&stopped, "").unwrap();
                }
                (&stream).write_all(format!(":{answer}\r\n").as_bytes()).unwrap();
            }
        });
        let ended = count(address, &counted, &stop);
        server.join().unwrap();
        (ended, fs::read_to_string(counted).ok())
    }

    #[test]
    fn a_count_without_a_gap_ends_well_when_it_is_told_to() {
        let (ended, counted) = against((1..=ROUND).collect());
        assert!(ended.is_ok());
        assert_eq!(counted.as_deref(), Some(ROUND.to_string().as_str()));
    }

    #[test]
    fn an_answer_that_is_not_the_next_is_a_failure() {
        for answers in [vec![1, 3], vec![1, 1], vec![2]] {
            let (ended, _) = against(answers.clone());
            assert!(ended.is_err(), "{answers:?}");
        }
    }
}
