use std::io::Write;
use std::process::{Command, Stdio};

use luo_abi::fdt::Writer;
use luo_abi::handover::{File, Session, Tokens, write_files, write_machine};
use luo_abi::{Criticality, OnClose, Owner};
use serde_json::{Value, json};

use crate::fake::{Act, Fake};
use crate::run::{alone, alone_with, run};

/// As long as a session's name can be.
const LONG: &str = "a-name-of-63-bytes-is-what-a-session-may-have-and-dtoolkit-not-";

fn machine() -> Vec<u8> {
    write_machine(3, [("files", 26), ("web cache", 1)]).unwrap()
}

fn files() -> Vec<u8> {
    let session = |name: &'static str, ttl| Session {
        name: name.into(),
        owner: Owner { uid: 1000, gid: 100 },
        on_close: OnClose::Keep,
        ttl,
        expiry: ttl.map(|_| 1_709_210_096),
        next_token: Some(27),
    };
    let file = |token, data, criticality| File {
        token,
        compatible: "memfd-v1",
        data,
        criticality,
        needs: Tokens::NONE,
    };
    write_files([
        (
            session("kv", Some(60)),
            vec![
                // Its bytes are those of a text, and it is a number all the same.
                file(26, u64::from_be_bytes(*b"abcdefg\0"), Criticality::Required),
                file(27, 7, Criticality::Optional),
            ],
        ),
        (session(LONG, None), Vec::new()),
    ])
    .unwrap()
}

const MACHINE_SOURCE: &str = "\
/dts-v1/;

/ { /* the machine's handover */
\tcompatible = \"luo-v1\";
\tliveupdate-number = /bits/ 64 <0x3>; /* 3 live updates completed */

\tsubsystems { /* what each subsystem kept, by its own account */
\t\tcompatible = \"subsystems-v1\";
\t\tfiles = /bits/ 64 <0x1a>; /* data 26 */
\t\tweb+20cache = /bits/ 64 <0x1>; /* subsystem \"web cache\": data 1 */
\t};
};
";

const FILES_SOURCE: &str = "\
/dts-v1/;

/ { /* the files' handover: 2 sessions */
\tcompatible = \"file-descriptors-v1\";

\tkv { /* session \"kv\": 2 files, 1 optional */
\t\towner = <0x3e8 0x64>; /* uid 1000, gid 100 */
\t\ton-close = \"keep\"; /* waits to be claimed when its last holder closes it */
\t\tttl = /bits/ 64 <0x3c>; /* waits 60 s at most */
\t\texpiry = /bits/ 64 <0x65e079f0>; /* nobody holds it; ends at 2024-02-29 12:34:56 UTC */
\t\tnext-token = /bits/ 64 <0x1b>; /* assigned next: 27 */

\t\t0x1a { /* file 26, required */
\t\t\tcompatible = \"memfd-v1\";
\t\t\tdata = /bits/ 64 <0x6162636465666700>; /* 7017280452245743360 */
\t\t};

\t\t0x1b { /* file 27, optional */
\t\t\tcompatible = \"memfd-v1\";
\t\t\tdata = /bits/ 64 <0x7>; /* 7 */
\t\t\toptional;
\t\t};
\t};

\ta-name-of-63-bytes-is-what-a-session-may-have-and-dtoolkit-not- { \
/* session \"a-name-of-63-bytes-is-what-a-session-may-have-and-dtoolkit-not-\": 0 files */
\t\towner = <0x3e8 0x64>; /* uid 1000, gid 100 */
\t\ton-close = \"keep\"; /* waits to be claimed when its last holder closes it */
\t\tnext-token = /bits/ 64 <0x1b>; /* assigned next: 27 */
\t};
};
";

#[test]
fn a_handover_is_source_with_its_numbers_in_words() {
    assert_eq!(LONG.len(), 63);
    assert_eq!(alone_with(&["inspect", "-"], &machine()).good(), MACHINE_SOURCE);
    assert_eq!(alone_with(&["inspect", "-"], &files()).good(), FILES_SOURCE);
}

#[test]
fn a_file_is_read_as_stdin_is() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&machine()).unwrap();
    assert_eq!(alone(&["inspect", file.path().to_str().unwrap()]).good(), MACHINE_SOURCE);
}

#[test]
fn without_a_blob_luod_is_asked() {
    let script = |size: usize| {
        Fake::new([("GetHandover", Act::ReplyWith(json!({ "size": size }), machine()))])
    };
    assert_eq!(run(&script(machine().len()), &["inspect"]).good(), MACHINE_SOURCE);
    // A size that luod's memory file does not have is not believed.
    for size in [machine().len() + 1, 1 << 50] {
        let stderr = run(&script(size), &["inspect"]).bad(1);
        assert!(stderr.contains("the handover that luod sent cannot be read"), "{stderr}");
    }
}

#[test]
fn trees_one_behind_the_other_are_all_printed() {
    let (machine, files) = (machine(), files());
    let both = [machine.as_slice(), &files].concat();
    let expected = format!(
        "/* tree 1 of 2, at byte 0 */\n{MACHINE_SOURCE}\n/* tree 2 of 2, at byte {} */\n{FILES_SOURCE}",
        machine.len()
    );
    assert_eq!(alone_with(&["inspect", "-"], &both).good(), expected);
    // Damage in the second is told by its byte in the whole.
    let mut damaged = both;
    let version = machine.len() + 20;
    damaged[version..version + 4].copy_from_slice(&16_u32.to_be_bytes());
    let stderr = alone_with(&["inspect", "-"], &damaged).bad(1);
    assert!(stderr.contains(&format!("(Version {{ found: 16 }} at byte {version})")), "{stderr}");
}

#[test]
fn dtc_makes_the_same_tree_of_it() {
    let mut odd = Writer::new();
    odd.begin_node("").unwrap();
    odd.property("texts", b"say \"a\\b\"\0two\0").unwrap();
    odd.property("bytes", &[1, 2, 0xff]).unwrap();
    odd.property("cells#?", &[0, 0, 0, 1, 0xff, 0, 0, 0]).unwrap();
    odd.property("empty", &[]).unwrap();
    odd.end_node().unwrap();
    for blob in [machine(), files(), odd.finish().unwrap()] {
        let source = alone_with(&["inspect", "-"], &blob).good();
        let Some(compiled) = dtc(&source) else {
            eprintln!("SKIPPED: dtc is not installed");
            return;
        };
        // The comments are of the content, so equal source is equal content.
        assert_eq!(alone_with(&["inspect", "-"], &compiled).good(), source);
    }
}

fn dtc(source: &str) -> Option<Vec<u8>> {
    let mut child = Command::new("dtc")
        .args(["-q", "-I", "dts", "-O", "dtb"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "dtc refuses\n{source}");
    Some(output.stdout)
}

#[test]
fn a_damaged_blob_is_told_by_kind_and_byte() {
    let mut cut = machine();
    cut.truncate(cut.len() - 1);
    let mut trailing = machine();
    trailing.push(0);
    let mut magic = machine();
    magic[0] = 0;
    for (blob, expected) in [
        (
            Vec::new(),
            "the blob is shorter than a device tree's header (ShortHeader at byte 0)".to_owned(),
        ),
        (magic, "this is no flattened device tree (Magic at byte 0)".to_owned()),
        (
            cut.clone(),
            format!("the blob is shorter than its header says (Truncated at byte {})", cut.len()),
        ),
        (
            trailing.clone(),
            format!("bytes follow behind the blob (TrailingBytes at byte {})", trailing.len() - 1),
        ),
    ] {
        for arguments in [&["inspect", "-"][..], &["inspect", "-", "--json"]] {
            assert_eq!(
                alone_with(arguments, &blob).bad(1),
                format!("luoctl: standard input is damaged: {expected}; use another copy\n")
            );
        }
    }
}

/// A files' tree with one sound session and one whose owner is too short.
fn one_bad_session() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.begin_node("").unwrap();
    writer.property_str("compatible", "file-descriptors-v1").unwrap();
    for (name, owner) in [("good", &[0; 8][..]), ("bad", &[0; 4])] {
        writer.begin_node(name).unwrap();
        writer.property("owner", owner).unwrap();
        writer.end_node().unwrap();
    }
    writer.end_node().unwrap();
    writer.finish().unwrap()
}

#[test]
fn a_damaged_entry_is_marked_and_the_rest_is_explained() {
    let run = alone_with(&["inspect", "-"], &one_bad_session());
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("\tgood { /* session \"good\": 0 files */\n"), "{}", run.stdout);
    let mark = "\tbad { /* DAMAGED: the property \"owner\" has 4 bytes instead of 8 (at byte ";
    assert!(run.stdout.contains(mark), "{}", run.stdout);
    assert!(run.stdout.ends_with("};\n"));
    assert!(
        run.stderr.starts_with("luoctl: in standard input, \"bad\" is damaged: the property"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.ends_with("what lies beside it can be used\n"), "{}", run.stderr);
}

#[test]
fn trees_of_others_are_printed_without_an_explanation() {
    let mut writer = Writer::new();
    writer.begin_node("").unwrap();
    writer.property_str("compatible", "luo-v9").unwrap();
    writer.property_u64("data", 7).unwrap();
    writer.end_node().unwrap();
    assert_eq!(
        alone_with(&["inspect", "-"], &writer.finish().unwrap()).good(),
        "/dts-v1/;\n\n/ { /* no handover that this luo reads */\n\
         \tcompatible = \"luo-v9\";\n\tdata = <0x0 0x7>;\n};\n"
    );
}

#[test]
fn json_has_bytes_numbers_texts_and_damage() {
    let tree = |blob: &[u8]| -> (i32, Value) {
        let run = alone_with(&["inspect", "-", "--json"], blob);
        let mut view: Value = serde_json::from_str(&run.stdout).unwrap();
        (run.code, view["trees"][0].take())
    };
    let (code, files) = tree(&files());
    assert_eq!((code, &files["damage"]), (0, &json!([])));
    let session = &files["root"]["nodes"][0];
    assert_eq!(session["name"], "kv");
    assert_eq!(session["comment"], "session \"kv\": 2 files, 1 optional");
    assert_eq!(session["properties"][0]["bytes"], "000003e800000064");
    assert_eq!(session["properties"][1]["texts"], json!(["keep"]));
    let data = &session["nodes"][0]["properties"][1];
    assert_eq!(data["number"], json!(7_017_280_452_245_743_360_u64));
    assert_eq!(data["texts"], Value::Null);
    let (code, bad) = tree(&one_bad_session());
    assert_eq!((code, bad["damage"].as_array().unwrap().len()), (1, 1));
}

#[test]
fn a_blob_that_is_not_there_is_status_6() {
    assert_eq!(
        alone(&["inspect", "/nowhere/blob"]).bad(6),
        "luoctl: /nowhere/blob cannot be read: No such file or directory (os error 2); \
         name a file with a handover, or - for standard input\n"
    );
}
