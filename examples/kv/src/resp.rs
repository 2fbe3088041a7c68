//! The Redis protocol, version 2: requests in (arrays of bulk strings, or inline lines), replies out.
//!
//! Invariants:
//! - The parser takes a request whole or not at all: until its last byte is there nothing is consumed.
//! - It remembers how far it got, so a request that arrives in many pieces is looked at once.
//! - What a request may claim is bounded before memory is set aside for it.

use std::ops::Range;

use crate::store::MAX_VALUE;

/// Longest inline request and longest line with a length, in bytes.
pub const MAX_LINE: usize = 64 << 10;
/// Most arguments of one request.
pub const MAX_ARGS: usize = 1 << 20;
/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 2 * MAX_VALUE;

/// Why a connection's input is no request. The connection is closed after the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A line without an end within [`MAX_LINE`].
    #[error("Protocol error: too big inline request")]
    LineTooLong,
    /// An array's length that is no number or more than [`MAX_ARGS`].
    #[error("Protocol error: invalid multibulk length")]
    ArrayLength,
    /// A string's length that is no number or longer than a value may be.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// Something else where a string had to start.
    #[error("Protocol error: expected '$'")]
    ExpectedBulk,
    /// A string without its line end.
    #[error("Protocol error: a bulk string must end with CRLF")]
    BulkEnd,
    /// Quotes of an inline request that do not match.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
    /// A request longer than [`MAX_REQUEST`].
    #[error("Protocol error: request of more than {MAX_REQUEST} bytes")]
    RequestTooLong,
}

/// A whole request. Arguments are ranges of the input, or owned where quotes had to be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How many bytes of input it took.
    pub consumed: usize,
    args: Args,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Args {
    Ranges(Vec<Range<usize>>),
    Owned(Vec<Vec<u8>>),
}

impl Request {
    /// The arguments, the command's name first; none for an empty line. `input` is what was parsed.
    pub fn args<'a>(&'a self, input: &'a [u8]) -> Vec<&'a [u8]> {
        match &self.args {
            Args::Ranges(ranges) => {
                ranges.iter().map(|range| input.get(range.clone()).unwrap_or_default()).collect()
            }
            Args::Owned(args) => args.iter().map(Vec::as_slice).collect(),
        }
    }
}

/// Where a request's parsing stopped for want of input.
#[derive(Debug, Default)]
pub struct Parser {
    /// All before is understood.
    at: usize,
    /// How far a line end was looked for.
    searched: usize,
    /// Arguments still to come, once the array's length is known.
    remaining: Option<usize>,
    /// Length of the string at `at`, once it is known.
    bulk: Option<usize>,
    args: Vec<Range<usize>>,
}

impl Parser {
    /// Looks for a whole request at the start of `input`, which must start as it did at the last call that
    /// returned `None`.
    ///
    /// # Errors
    /// The input can never become a request; what comes after it cannot be told apart.
    pub fn advance(&mut self, input: &[u8]) -> Result<Option<Request>, ProtocolError> {
        let request = self.parse(input)?;
        if request.is_some() {
            *self = Self::default();
        }
        Ok(request)
    }

    /// How many bytes of input are certainly needed before [`advance`](Self::advance) can get further.
    pub fn needed(&self) -> usize {
        self.bulk.map_or(self.searched.max(self.at) + 1, |len| self.at + len + 2)
    }

    fn parse(&mut self, input: &[u8]) -> Result<Option<Request>, ProtocolError> {
        if self.remaining.is_none() {
            match input.first() {
                None => return Ok(None),
                Some(b'*') => {}
                Some(_) => return self.inline(input),
            }
            let Some(line) = self.line(input)? else { return Ok(None) };
            let count = number(&input[1..line.end]).ok_or(ProtocolError::ArrayLength)?;
            // Redis takes a null array for an empty request.
            let count = usize::try_from(count.max(0)).map_err(|_| ProtocolError::ArrayLength)?;
            if count > MAX_ARGS {
                return Err(ProtocolError::ArrayLength);
            }
            self.remaining = Some(count);
        }
        while self.remaining != Some(0) {
            let len = match self.bulk {
                Some(len) => len,
                None => {
                    if input.get(self.at).is_some_and(|byte| *byte != b'$') {
                        return Err(ProtocolError::ExpectedBulk);
                    }
                    let Some(line) = self.line(input)? else { return Ok(None) };
                    let len = number(&input[line.start + 1..line.end])
                        .ok_or(ProtocolError::BulkLength)?;
                    let len = usize::try_from(len).map_err(|_| ProtocolError::BulkLength)?;
                    if len > MAX_VALUE {
                        return Err(ProtocolError::BulkLength);
                    }
                    if self.at + len > MAX_REQUEST {
                        return Err(ProtocolError::RequestTooLong);
                    }
                    self.bulk = Some(len);
                    len
                }
            };
            let end = self.at + len;
            let Some(crlf) = input.get(end..end + 2) else { return Ok(None) };
            if crlf != b"\r\n" {
                return Err(ProtocolError::BulkEnd);
            }
            self.args.push(self.at..end);
            (self.at, self.searched, self.bulk) = (end + 2, end + 2, None);
            self.remaining = self.remaining.map(|remaining| remaining - 1);
        }
        Ok(Some(Request { consumed: self.at, args: Args::Ranges(std::mem::take(&mut self.args)) }))
    }

    fn inline(&mut self, input: &[u8]) -> Result<Option<Request>, ProtocolError> {
        let Some(line) = self.line(input)? else { return Ok(None) };
        Ok(Some(Request { consumed: self.at, args: Args::Owned(split_inline(&input[line])?) }))
    }

    /// Takes the line at `at` and returns it without its end.
    fn line(&mut self, input: &[u8]) -> Result<Option<Range<usize>>, ProtocolError> {
        let start = self.at;
        let from = self.searched.max(start);
        match input.get(from..).unwrap_or_default().iter().position(|byte| *byte == b'\n') {
            Some(found) if from + found - start <= MAX_LINE => {
                let newline = from + found;
                (self.at, self.searched) = (newline + 1, newline + 1);
                let has_cr = newline > start && input[newline - 1] == b'\r';
                Ok(Some(start..if has_cr { newline - 1 } else { newline }))
            }
            None if input.len().saturating_sub(start) <= MAX_LINE => {
                self.searched = input.len();
                Ok(None)
            }
            _ => Err(ProtocolError::LineTooLong),
        }
    }
}

/// A decimal number, as protocol and commands want it: an optional minus sign and digits.
pub fn number(text: &[u8]) -> Option<i64> {
    if text.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Splits an inline request at spaces; single and double quotes hold arguments together.
fn split_inline(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let mut args = Vec::new();
    let mut rest = line.iter().copied().peekable();
    loop {
        while rest.next_if(u8::is_ascii_whitespace).is_some() {}
        if rest.peek().is_none() {
            return Ok(args);
        }
        let mut arg = Vec::new();
        while let Some(byte) = rest.next_if(|byte| !byte.is_ascii_whitespace()) {
            match byte {
                quote @ (b'"' | b'\'') => {
                    loop {
                        match rest.next().ok_or(ProtocolError::Quotes)? {
                            end if end == quote => break,
                            b'\\' => {
                                let escaped = rest.next().ok_or(ProtocolError::Quotes)?;
                                arg.push(match escaped {
                                    b'n' if quote == b'"' => b'\n',
                                    b'r' if quote == b'"' => b'\r',
                                    b't' if quote == b'"' => b'\t',
                                    other => other,
                                });
                            }
                            other => arg.push(other),
                        }
                    }
                    if rest.peek().is_some_and(|byte| !byte.is_ascii_whitespace()) {
                        return Err(ProtocolError::Quotes);
                    }
                }
                other => arg.push(other),
            }
        }
        args.push(arg);
    }
}

/// Replies, appended to an output buffer.
pub mod reply {
    /// `+text`
    pub fn simple(out: &mut Vec<u8>, text: &str) {
        line(out, b'+', text.as_bytes());
    }

    /// `-text`, on one line whatever the text holds.
    pub fn error(out: &mut Vec<u8>, text: &str) {
        let text = text.replace(['\r', '\n'], " ");
        line(out, b'-', text.as_bytes());
    }

    /// `:value`
    pub fn integer(out: &mut Vec<u8>, value: i64) {
        prefix(out, b':', value);
    }

    /// `$len` and the bytes.
    pub fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
        bulk_header(out, bytes.len());
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    }

    /// `$len`; the bytes and a line end must follow.
    pub fn bulk_header(out: &mut Vec<u8>, len: usize) {
        prefix(out, b'$', i64::try_from(len).unwrap_or(i64::MAX));
    }

    /// The reply for what is not there.
    pub fn null(out: &mut Vec<u8>) {
        out.extend_from_slice(b"$-1\r\n");
    }

    /// `*len`; as many replies must follow.
    pub fn array(out: &mut Vec<u8>, len: usize) {
        prefix(out, b'*', i64::try_from(len).unwrap_or(i64::MAX));
    }

    fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
        out.push(kind);
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
    }

    fn prefix(out: &mut Vec<u8>, kind: u8, value: i64) {
        let mut digits = [0; 20];
        let mut rest = value.unsigned_abs();
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        out.push(kind);
        if value < 0 {
            out.push(b'-');
        }
        out.extend_from_slice(&digits[at..]);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests;
