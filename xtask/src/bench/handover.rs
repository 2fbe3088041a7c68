//! What a file costs in the handover, written and parsed, beside libfdt and dtoolkit.
//!
//! Each figure is the best of several runs, in nanoseconds a file. Parsing is validating all of
//! the blob and visiting every file in it. The goals are those of the machine on which libfdt
//! writes in 125 ns and parses in 325: 60 and 85. A bare pass, which copies or reads the same
//! bytes, is what no writer or parser goes below.

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};
use luo_abi::handover::{File, FilesTree, FilesWriter, Session, Tokens};
use luo_abi::{Criticality, OnClose, Owner};
use tempfile::TempDir;

use super::report::Better;
use super::{Bencher, Row};
use crate::failure::{Context as _, Failed, Result};

const COUNTS: [usize; 3] = [1_000, 10_000, 100_000];
/// Of libfdt's figures.
const WRITE_GOAL: f64 = 0.48;
const PARSE_GOAL: f64 = 0.26;
/// Of a thousand files' figure, at a hundred thousand.
const FLAT_GOAL: f64 = 1.2;

/// Writing and parsing, at 1,000, 10,000 and 100,000 files.
pub(super) fn run(bencher: &Bencher<'_>) -> Result<Vec<Row>> {
    let libfdt = Libfdt::build();
    if let Err(failed) = &libfdt {
        bencher.skipped(&format!("libfdt: {}", failed.chain()));
    }
    let libfdt = libfdt.as_ref().ok();
    let mut rows = Vec::new();
    let mut flat = Vec::new();
    for count in COUNTS {
        bencher.measuring(&format!("{count} files"));
        let blob = luo_write(count, 1, |token| token)?;
        let write = best(bencher, count, || luo_write(count, 1, |token| token))?;
        let parse = best(bencher, count, || luo_read(black_box(&blob)))?;
        flat.push((write, parse));

        let what = format!("write, {count} files");
        if let Some(libfdt) = libfdt {
            let figure = libfdt.measure(count, "write")?;
            rows.push(row(&what, write, "libfdt", figure, Some(WRITE_GOAL)));
        }
        let figure = best(bencher, count, || dtoolkit_write(count))?;
        rows.push(row(&what, write, "dtoolkit", figure, None));
        let figure = best(bencher, count, || Ok(bare_write(count)))?;
        rows.push(row(&what, write, "bare copy", figure, None));

        let what = format!("validate and parse, {count} files");
        if let Some(libfdt) = libfdt {
            let figure = libfdt.measure(count, "read")?;
            rows.push(row(&what, parse, "libfdt", figure, Some(PARSE_GOAL)));
        }
        let figure = best(bencher, count, || dtoolkit_read(black_box(&blob)))?;
        rows.push(row(&what, parse, "dtoolkit", figure, None));
        let figure = best(bencher, count, || Ok(bare_read(black_box(&blob))))?;
        rows.push(row(&what, parse, "bare pass", figure, None));
    }
    let (least, most) = (COUNTS[0], COUNTS[2]);
    if let [(write_few, parse_few), .., (write_many, parse_many)] = flat[..] {
        let peer = format!("{least} files");
        for (what, many, few) in
            [("write", write_many, write_few), ("validate and parse", parse_many, parse_few)]
        {
            rows.push(row(&format!("{what}, {most} files"), many, &peer, few, Some(FLAT_GOAL)));
        }
        bencher.measuring("other shapes");
        let scattered = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let backwards = |i| most as u64 - i;
        for (name, sessions, token) in [
            ("tokens in no order", 1, &scattered as &dyn Fn(u64) -> u64),
            ("tokens that descend", 1, &backwards),
            ("10,000 sessions of 10 files", 10_000, &|i| i),
        ] {
            let blob = luo_write(most, sessions, token)?;
            let write = best(bencher, most, || luo_write(most, sessions, token))?;
            let parse = best(bencher, most, || luo_read(black_box(&blob)))?;
            let peer = "one session, tokens ascend";
            rows.push(row(&format!("write, {name}"), write, peer, write_many, None));
            rows.push(row(&format!("validate and parse, {name}"), parse, peer, parse_many, None));
        }
    }
    Ok(rows)
}

fn row(what: &str, ours: f64, peer: &str, peer_value: f64, goal: Option<f64>) -> Row {
    Row {
        what: what.into(),
        ours: Some(ours),
        peer: peer.into(),
        peer_value,
        unit: "ns a file",
        better: Better::Lower,
        goal,
    }
}

/// The best run's nanoseconds a file, of runs that take about a second together.
fn best<T>(bencher: &Bencher<'_>, files: usize, mut run: impl FnMut() -> Result<T>) -> Result<f64> {
    let span = Duration::from_millis(bencher.times(1_000) as u64);
    let begin = Instant::now();
    let mut best = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || begin.elapsed() < span {
        let start = Instant::now();
        let result = black_box(run()?);
        best = best.min(start.elapsed());
        drop(result);
        runs += 1;
    }
    Ok(best.as_secs_f64() * 1e9 / files as f64)
}

fn session(name: &str) -> Session<'_> {
    Session {
        name: name.into(),
        owner: Owner { uid: 1000, gid: 1000 },
        on_close: OnClose::Release,
        ttl: None,
        expiry: None,
        next_token: None,
    }
}

fn luo_write(files: usize, sessions: usize, token: impl Fn(u64) -> u64) -> Result<Vec<u8>> {
    let mut writer = FilesWriter::with_capacity(files);
    let mut next = 0;
    for number in 0..sessions {
        writer
            .session(&session(&format!("session-{number}")))
            .context(|| "write a session".into())?;
        for _ in 0..files / sessions {
            let file = File {
                token: token(next),
                compatible: "memfd-v1",
                data: next,
                criticality: Criticality::Required,
                needs: Tokens::NONE,
            };
            writer.file(&file).context(|| "write a file".into())?;
            next += 1;
        }
    }
    writer.finish().context(|| "finish the tree".into())
}

/// Visits every file with everything that is known of it.
fn luo_read(blob: &[u8]) -> Result<()> {
    let mut sum = 0_u64;
    let tree = FilesTree::read(blob).context(|| "read the tree".into())?;
    for session in tree.sessions() {
        for file in session.context(|| "read a session".into())?.files() {
            let file = file.context(|| "read a file".into())?;
            sum = sum.wrapping_add(file.token ^ file.data ^ file.compatible.len() as u64);
        }
    }
    black_box(sum);
    Ok(())
}

/// Copies as many bytes a file as the tree has, with the two numbers set.
fn bare_write(files: usize) -> Vec<u8> {
    let template = [7_u8; 60];
    let mut out = Vec::with_capacity(64 * files);
    for i in 0..files as u64 {
        let mut node = black_box(template);
        node[4..12].copy_from_slice(&i.to_be_bytes());
        node[48..56].copy_from_slice(&i.to_be_bytes());
        out.extend_from_slice(&node);
    }
    out
}

/// Looks at every word once, each step needing the one before, as in a pass over tokens.
fn bare_read(blob: &[u8]) -> u32 {
    let mut sum = 0_u32;
    for word in blob.chunks_exact(4) {
        let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
        sum = black_box(sum.wrapping_add(word));
    }
    sum
}

fn dtoolkit_write(files: usize) -> Result<Vec<u8>> {
    let property = |name: &str, value: u64| {
        DeviceTreeProperty::new(name, value).context(|| "dtoolkit: make a property".into())
    };
    let node = |name: String| DeviceTreeNode::new(name).context(|| "dtoolkit: make a node".into());
    let compatible = |value: &str| {
        DeviceTreeProperty::new("compatible", value).context(|| "dtoolkit: make a property".into())
    };
    let mut session = node("session-0".into())?;
    session.add_property(property("owner", 0x3e8_0000_03e8)?);
    for i in 0..files {
        let mut file = node(format!("0x{i:x}"))?;
        file.add_property(compatible("memfd-v1")?);
        file.add_property(property("data", i as u64)?);
        session.add_child(file);
    }
    let mut tree = DeviceTree::new();
    tree.root.add_property(compatible("file-descriptors-v1")?);
    tree.root.add_child(session);
    Ok(tree.to_dtb())
}

fn dtoolkit_read(blob: &[u8]) -> Result<()> {
    let wrong = || "dtoolkit: read the tree".to_owned();
    let tree = Fdt::new(blob).context(wrong)?;
    let mut sum = 0_u64;
    for session in tree.root().children() {
        for file in session.children() {
            let token = file.name().get(2..).unwrap_or_default();
            sum = sum.wrapping_add(u64::from_str_radix(token, 16).context(wrong)?);
            for property in file.properties() {
                match property.name() {
                    "data" => sum ^= property.value_as::<u64>().context(wrong)?,
                    "compatible" => {
                        sum ^= property.value_as::<&str>().context(wrong)?.len() as u64;
                    }
                    _ => {}
                }
            }
        }
    }
    black_box(sum);
    Ok(())
}

/// The C library, measured by a program of its own.
struct Libfdt {
    dir: TempDir,
}

impl Libfdt {
    fn build() -> Result<Self> {
        let dir = TempDir::new().context(|| "make a directory".into())?;
        let source = dir.path().join("libfdt_bench.c");
        std::fs::write(&source, include_str!("libfdt_bench.c"))
            .context(|| "write its program".into())?;
        let libfdt = Self { dir };
        let output = Command::new("cc")
            .args(["-O2", "-o"])
            .arg(libfdt.program())
            .arg(&source)
            .arg("-lfdt")
            .output()
            .context(|| "run the C compiler".into())?;
        if output.status.success() {
            Ok(libfdt)
        } else {
            Err(Failed::new("it is not installed (on Debian: libfdt-dev)"))
        }
    }

    fn program(&self) -> std::path::PathBuf {
        self.dir.path().join("libfdt_bench")
    }

    fn measure(&self, files: usize, what: &str) -> Result<f64> {
        let output = Command::new(self.program())
            .args([what, &files.to_string()])
            .output()
            .context(|| "run libfdt's program".into())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("libfdt: {said}")));
        }
        let figure = String::from_utf8_lossy(&output.stdout);
        figure.trim().parse().context(|| format!("`{figure}` is no figure"))
    }
}
