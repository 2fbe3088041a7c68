//! Tests of the protocol.

use proptest::prelude::*;

use super::*;

fn encode(args: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    reply::array(&mut out, args.len());
    for arg in args {
        reply::bulk(&mut out, arg);
    }
    out
}

fn parse_all(input: &[u8]) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
    let (mut requests, mut rest, mut parser) = (Vec::new(), input, Parser::default());
    while let Some(request) = parser.advance(rest)? {
        requests.push(request.args(rest).into_iter().map(<[u8]>::to_vec).collect());
        rest = &rest[request.consumed..];
    }
    Ok(requests)
}

proptest! {
    #[test]
    fn requests_cut_at_any_byte_are_the_same_requests(
        requests in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..5), 1..4),
    ) {
        let input: Vec<u8> = requests.iter().flat_map(|args| encode(args)).collect();
        prop_assert_eq!(parse_all(&input), Ok(requests.clone()));
        for cut in 0..=input.len() {
            let (mut found, mut start, mut parser) = (Vec::new(), 0, Parser::default());
            for end in [cut, input.len()] {
                while let Some(request) = parser.advance(&input[start..end]).unwrap() {
                    let args = request.args(&input[start..end]);
                    found.push(args.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
                    start += request.consumed;
                }
                prop_assert!(start == end || start + parser.needed() > end);
            }
            prop_assert_eq!(&found, &requests);
            prop_assert_eq!(start, input.len());
        }
    }

    #[test]
    fn any_bytes_in_any_pieces_give_what_they_give_whole(
        input in proptest::collection::vec(prop_oneof![
            Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'2'), Just(b'-'), Just(b'"'), Just(b' '),
            any::<u8>()], 0..60),
    ) {
        let whole = parse_all(&input);
        let (mut found, mut start, mut parser) = (Vec::new(), 0, Parser::default());
        let mut error = None;
        'input: for end in 0..=input.len() {
            loop {
                match parser.advance(&input[start..end]) {
                    Ok(Some(request)) => {
                        let args = request.args(&input[start..end]);
                        found.push(args.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
                        start += request.consumed;
                    }
                    Ok(None) => break,
                    Err(cause) => {
                        error = Some(cause);
                        break 'input;
                    }
                }
            }
        }
        match error {
            None => prop_assert_eq!(whole, Ok(found)),
            Some(cause) => prop_assert_eq!(whole, Err(cause)),
        }
    }

    #[test]
    fn integers_are_written_as_they_are_read(value in any::<i64>()) {
        let mut out = Vec::new();
        reply::integer(&mut out, value);
        prop_assert_eq!(out, format!(":{value}\r\n").into_bytes());
    }
}

fn inline(text: &str) -> Result<Vec<Vec<u8>>, ProtocolError> {
    Ok(parse_all(text.as_bytes())?.remove(0))
}

#[test]
fn an_inline_request_is_split_at_spaces_and_quotes_hold_together() {
    assert_eq!(inline("SET key  value\r\n").unwrap(), [&b"SET"[..], b"key", b"value"]);
    assert_eq!(inline("PING\n").unwrap(), [b"PING"]);
    assert_eq!(inline("SET \"a b\\n\" 'c\\'d'\n").unwrap(), [&b"SET"[..], b"a b\n", b"c'd"]);
    assert!(inline("\r\n").unwrap().is_empty());
    assert_eq!(inline("GET \"open\n"), Err(ProtocolError::Quotes));
    assert_eq!(inline("GET \"a\"b\n"), Err(ProtocolError::Quotes));
}

#[test]
fn lengths_out_of_range_are_refused_before_their_bytes_arrive() {
    let error = |input: &[u8]| Parser::default().advance(input).unwrap_err();
    assert_eq!(error(b"*1048577\r\n"), ProtocolError::ArrayLength);
    assert_eq!(error(b"*x\r\n"), ProtocolError::ArrayLength);
    assert_eq!(error(b"*+1\r\n"), ProtocolError::ArrayLength);
    assert_eq!(error(b"*1\r\n$67108865\r\n"), ProtocolError::BulkLength);
    assert_eq!(error(b"*1\r\n$-1\r\n"), ProtocolError::BulkLength);
    assert_eq!(error(b"*1\r\n:1\r\n"), ProtocolError::ExpectedBulk);
    assert_eq!(error(b"*1\r\n$1\r\nabc"), ProtocolError::BulkEnd);
    assert_eq!(error(&[b'x'; MAX_LINE + 1]), ProtocolError::LineTooLong);
    assert_eq!(Parser::default().advance(&[b'x'; MAX_LINE]), Ok(None));
}

#[test]
fn an_error_reply_stays_on_one_line() {
    let mut out = Vec::new();
    reply::error(&mut out, "ERR unknown command 'a\r\n+OK'");
    assert_eq!(out, b"-ERR unknown command 'a  +OK'\r\n");
}
