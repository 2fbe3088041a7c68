//! What the documents say of the protocol is what the protocol is.

use luo::protocol::{CONNECT_PACKET, MANAGER_IDL, SESSION_IDL};

const PAGE: &str = include_str!("../../../docs/protocol.md");

#[test]
fn the_page_holds_the_definitions_as_they_are_served() {
    for definition in [MANAGER_IDL, SESSION_IDL] {
        let block = format!("```varlink\n{definition}```\n");
        let name = definition.lines().find(|line| line.starts_with("interface ")).unwrap();
        assert!(PAGE.contains(&block), "docs/protocol.md does not hold the definition of {name}");
    }
}

#[test]
fn the_page_names_the_packet_that_opens_a_connection() {
    let packet = std::str::from_utf8(CONNECT_PACKET).unwrap();
    let bytes = format!("{} bytes `{packet}`", CONNECT_PACKET.len());
    assert!(PAGE.contains(&bytes), "docs/protocol.md does not say: {bytes}");
}
