//! Blobs are real device trees: dtc reads them, and writes them so that they are read here again.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use luo_abi::{
    Criticality, OnClose, Owner,
    handover::{File, FilesTree, MachineTree, Session, Tokens, write_files, write_machine},
};

/// Runs dtc with `input`; `None`, loudly, where it is not installed.
fn dtc(from: &str, to: &str, input: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new("dtc");
    command.args(["-q", "-I", from, "-O", to]);
    let spawned =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut dtc = match spawned {
        Ok(dtc) => dtc,
        Err(error) => {
            eprintln!("SKIPPED: dtc cannot be run ({error}); install device-tree-compiler");
            return None;
        }
    };
    dtc.stdin.take().unwrap().write_all(input).unwrap();
    let output = dtc.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaint.is_empty(), "dtc: {complaint}");
    Some(output.stdout)
}

/// The words of a device tree source, without the layout that dtc chooses.
fn words(source: &str) -> Vec<&str> {
    source.split_whitespace().filter(|word| *word != "/dts-v1/;").collect()
}

const FILES: &str = r#"
/ {
    compatible = "file-descriptors-v1";

    web+20cache+40home {
        owner = <0x3e8 0x64>;
        on-close = "keep";
        ttl = <0x00 0xe10>;
        next-token = <0x00 0x1b>;

        0x1a {
            compatible = "memfd-v1";
            data = <0x01 0x02>;
            optional;
            needs = <0x00 0x09>;
        };

        0x9 {
            compatible = "vendor,socket-v2";
            data = <0xffffffff 0xffffffff>;
        };
    };

    a-name-of-sixty-three-bytes-which-is-more-than-thirty-one-are.6 {
        owner = <0x00 0x00>;
        on-close = "release";
        expiry = <0x00 0x6b49d200>;
    };
};
"#;

fn sessions() -> Vec<(Session<'static>, Vec<File<'static>>)> {
    let cache = Session {
        name: "web cache@home".into(),
        owner: Owner { uid: 1000, gid: 100 },
        on_close: OnClose::Keep,
        ttl: Some(3600),
        expiry: None,
        next_token: Some(0x1b),
    };
    let long = Session {
        name: "a-name-of-sixty-three-bytes-which-is-more-than-thirty-one-are.6".into(),
        owner: Owner { uid: 0, gid: 0 },
        on_close: OnClose::Release,
        ttl: None,
        expiry: Some(0x6b49_d200),
        next_token: None,
    };
    let memory = File {
        token: 0x1a,
        compatible: "memfd-v1",
        data: 0x1_0000_0002,
        criticality: Criticality::Optional,
        needs: Tokens::new(&[[0, 0, 0, 0, 0, 0, 0, 9]]),
    };
    let socket = File {
        token: 9,
        compatible: "vendor,socket-v2",
        data: u64::MAX,
        criticality: Criticality::Required,
        needs: Tokens::NONE,
    };
    vec![(cache, vec![memory, socket]), (long, vec![])]
}

#[test]
fn dtc_reads_the_files() {
    let blob = write_files(sessions()).unwrap();
    let Some(source) = dtc("dtb", "dts", &blob) else { return };
    assert_eq!(words(&String::from_utf8(source).unwrap()), words(FILES));
}

#[test]
fn what_dtc_writes_is_read() {
    let source = format!("/dts-v1/;\n{FILES}");
    let Some(blob) = dtc("dts", "dtb", source.as_bytes()) else { return };
    let read: Vec<_> = FilesTree::read(&blob)
        .unwrap()
        .sessions()
        .map(|session| {
            let session = session.unwrap();
            let files = session.files().map(Result::unwrap).collect::<Vec<_>>();
            (session.into_session(), files)
        })
        .collect();
    assert_eq!(read, sessions());
}

#[test]
fn dtc_reads_the_machine_also_with_names_that_mean_something_to_it() {
    let subsystems =
        [("files", 7), ("my cache", 0x2a), ("compatible", 1), ("phandle", 2), ("name", 3)];
    let blob = write_machine(3, subsystems).unwrap();
    let Some(source) = dtc("dtb", "dts", &blob) else { return };
    let expected = r#"
        / {
            compatible = "luo-v1";
            liveupdate-number = <0x00 0x03>;
            subsystems {
                compatible = "subsystems-v1";
                files = <0x00 0x07>;
                my+20cache = <0x00 0x2a>;
                +63ompatible = <0x00 0x01>;
                +70handle = <0x00 0x02>;
                +6eame = <0x00 0x03>;
            };
        };
    "#;
    let source = String::from_utf8(source).unwrap();
    assert_eq!(words(&source), words(expected));
    let Some(blob) = dtc("dts", "dtb", source.as_bytes()) else { return };
    let tree = MachineTree::read(&blob).unwrap();
    let read: Vec<_> = tree.subsystems().map(Result::unwrap).collect();
    assert_eq!(read.iter().map(|s| (&*s.name, s.data)).collect::<Vec<_>>(), subsystems);
}
