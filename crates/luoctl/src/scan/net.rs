//! Reads the tables of sockets that `/proc/PID/net` shows. No I/O.

use std::collections::HashMap;

/// The families that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Tcp,
    Udp,
    /// Streams and packets in order.
    Unix,
    UnixDatagram,
}

/// What a table says of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) family: Family,
    pub(crate) listens: bool,
    /// The state of a TCP socket.
    pub(crate) state: Option<&'static str>,
    /// Bytes in both queues.
    pub(crate) queued: u64,
}

/// The states of TCP by their numbers.
const STATES: [&str; 13] = [
    "unknown",
    "established",
    "syn-sent",
    "syn-received",
    "fin-wait-1",
    "fin-wait-2",
    "time-wait",
    "closed",
    "close-wait",
    "last-ack",
    "listening",
    "closing",
    "new-syn-received",
];

/// The number of `listening`.
const LISTENING: usize = 10;

/// `__SO_ACCEPTCON` of the kernel: a Unix socket listens.
const ACCEPTS: u32 = 1 << 16;

/// Sockets by their inode numbers.
pub(crate) type Table = HashMap<u64, Socket>;

/// Adds what a table of that name (`tcp`, `tcp6`, `udp`, `udp6`, `unix`) has. Lines that are not
/// understood are left out.
pub(crate) fn read(name: &str, text: &str, table: &mut Table) {
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let socket = match name {
            "unix" => unix(&fields),
            name if name.starts_with("tcp") => internet(&fields, Family::Tcp),
            _ => internet(&fields, Family::Udp),
        };
        table.extend(socket);
    }
}

fn internet(fields: &[&str], family: Family) -> Option<(u64, Socket)> {
    let state = usize::from_str_radix(fields.get(3)?, 16).ok()?;
    let (sent, received) = fields.get(4)?.split_once(':')?;
    let bytes = |text| u64::from_str_radix(text, 16).ok();
    let is_tcp = family == Family::Tcp;
    let listens = is_tcp && state == LISTENING;
    let socket = Socket {
        family,
        listens,
        state: is_tcp.then(|| STATES.get(state).copied().unwrap_or("unknown")),
        // Of a listener they count connections.
        queued: if listens { 0 } else { bytes(sent)?.saturating_add(bytes(received)?) },
    };
    Some((fields.get(9)?.parse().ok()?, socket))
}

fn unix(fields: &[&str]) -> Option<(u64, Socket)> {
    let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    // SOCK_DGRAM
    let family = if *fields.get(4)? == "0002" { Family::UnixDatagram } else { Family::Unix };
    let socket = Socket { family, listens: flags & ACCEPTS != 0, state: None, queued: 0 };
    Some((fields.get(6)?.parse().ok()?, socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_tables_are_read() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:9DB9 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 24905768 1 00000000df433bde 100 0 0 10 0\n   \
            1: 0100007F:07E8 0100007F:9DB9 01 00000010:00000002 00:00000000 00000000     0        0 1225 1 00000000096e5b2a 20 4 30 10 -1\n";
        let unix = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            00000000d560c7db: 00000003 00000000 00000000 0001 03 24906492\n\
            000000008b5ce979: 00000002 00000000 00010000 0001 01 24902116 /run/a b\n\
            000000008b5ce97a: 00000002 00000000 00000000 0002 01 7 @x\n";
        let mut table = Table::new();
        read("tcp", tcp, &mut table);
        read("unix", unix, &mut table);
        read(
            "udp",
            "head\n 5: 0100007F:0035 00000000:0000 07 00000000:00000001 00:00000000 00000000 0 0 42 2 0 0\n",
            &mut table,
        );
        read("tcp6", "head\nthis is no line of it\n\n", &mut table);
        assert_eq!(table.len(), 6);
        assert!(table[&24905768].listens && table[&24905768].queued == 0);
        assert_eq!((table[&1225].state, table[&1225].queued), (Some("established"), 18));
        assert!(!table[&24906492].listens && table[&24902116].listens);
        assert_eq!(table[&7].family, Family::UnixDatagram);
        assert_eq!((table[&42].family, table[&42].queued), (Family::Udp, 1));
    }
}
