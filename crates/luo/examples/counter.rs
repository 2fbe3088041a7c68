//! A counter over TCP whose listener, connections and count outlive it.
//!
//! With a luod running, start it, connect (`nc ::1 7777`), and press return a few times: each line
//! is answered with the count. Stop the counter with SIGTERM, or kill it; start it again: the
//! connection is still open, lines sent meanwhile are answered, and the count goes on.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use luo::{Memory, Session};

const LISTENER: u64 = 1;
const COUNT: u64 = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "[::1]:7777".to_owned());
    let session = Arc::new(Session::open("counter")?);
    let incoming = session.info()?.incoming;
    let (listener, count) = if incoming.contains(&LISTENER) {
        (session.retrieve(LISTENER)?.into(), Arc::new(session.retrieve(COUNT)?.try_into()?))
    } else {
        let (listener, count) = (TcpListener::bind(address)?, Memory::create("count", 8)?);
        session.preserve_all(&[(LISTENER, listener.as_fd()), (COUNT, count.as_fd())])?;
        (listener, Arc::new(count))
    };
    let connections: Vec<u64> = incoming.into_iter().filter(|token| *token > COUNT).collect();
    let files = session.retrieve_many(&connections)?;
    if session.is_updated()? {
        // From now on everything is kept for the next time, without being given again.
        session.finish_and_carry()?;
    }
    // Only now: a client that has gone meanwhile is taken out of what is carried.
    for (token, file) in connections.into_iter().zip(files) {
        serve(token, file?.into(), &session, &count);
    }
    for connection in listener.incoming() {
        let connection = connection?;
        // A counter that is killed before this is done drops the connection: it was never kept.
        let token = session.preserve_assigned(&connection)?;
        serve(token, connection, &session, &count);
    }
    Ok(())
}

fn serve(token: u64, connection: TcpStream, session: &Arc<Session>, count: &Arc<Memory>) {
    let (session, count) = (Arc::clone(session), Arc::clone(count));
    thread::spawn(move || {
        if let Err(error) = answer(&connection, &count) {
            eprintln!("connection {token}: {error}");
        }
        // The client has gone: there is nothing to keep any more.
        if let Err(error) = session.unpreserve(token) {
            eprintln!("connection {token}: {error}");
        }
    });
}

fn answer(mut connection: &TcpStream, count: &Memory) -> Result<(), Box<dyn Error>> {
    for line in BufReader::new(connection).lines() {
        line?;
        let mut now = count.load_u64(0)?;
        while let Err(other) = count.compare_exchange_u64(0, now, now + 1)? {
            now = other;
        }
        writeln!(connection, "{}", now + 1)?;
    }
    Ok(())
}
