//! The documents know every errno.

use luo_core::Errno;

const PAGE: &str = include_str!("../../../docs/protocol.md");

#[test]
fn the_page_of_the_protocol_explains_every_errno() {
    for errno in Errno::ALL {
        let row = format!("| `{errno}` |");
        assert!(PAGE.contains(&row), "docs/protocol.md has no row for {errno}");
    }
}
