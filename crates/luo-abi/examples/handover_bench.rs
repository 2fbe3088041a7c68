//! Measures what a file costs in the handover: `cargo run --release --example handover_bench`.
//!
//! Each figure is the best of several runs, in nanoseconds a file, beside its limit (a bare pass
//! that copies or reads the same bytes), dtoolkit, and libfdt where `cc` and `-lfdt` are there.
//! Beneath the table, the same figure for files whose tokens do not ascend, and for many sessions.

use std::{
    error::Error,
    hint::black_box,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use dtoolkit::{
    Node as _, Property as _,
    fdt::Fdt,
    model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty},
};
use luo_abi::{
    Criticality, OnClose, Owner,
    fdt::Blob,
    handover::{File, FilesTree, FilesWriter, Session},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const COUNTS: [usize; 3] = [1_000, 10_000, 100_000];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let libfdt = Libfdt::build();
    if let Err(reason) = &libfdt {
        eprintln!("SKIPPED: libfdt: {reason}");
    }
    println!("ns a file              {:>10}{:>10}{:>10}", COUNTS[0], COUNTS[1], COUNTS[2]);
    let mut rows: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut row = |name, figures: Result<Vec<f64>>| -> Result<()> {
        rows.push((name, figures?));
        Ok(())
    };
    let per_count =
        |measure: &dyn Fn(usize) -> Result<f64>| COUNTS.map(measure).into_iter().collect();
    row("write: bare copy", per_count(&|n| best(n, || bare_write(n))))?;
    row("write: luo", per_count(&|n| best(n, || luo_write(n, 1, |i| i))))?;
    row("write: dtoolkit", per_count(&|n| best(n, || dtoolkit_write(n))))?;
    if let Ok(libfdt) = &libfdt {
        row("write: libfdt", per_count(&|n| libfdt.measure(n, "write")))?;
    }
    row("read: bare sum", on_blobs(bare_read))?;
    row("read: luo, validate", on_blobs(|blob| Ok(Blob::validate(blob).map(drop)?)))?;
    row("read: luo, to files", on_blobs(luo_read))?;
    row("read: dtoolkit", on_blobs(dtoolkit_read))?;
    if let Ok(libfdt) = &libfdt {
        row("read: libfdt", per_count(&|n| libfdt.measure(n, "read")))?;
    }
    for (name, figures) in &rows {
        let [a, b, c] = figures[..] else { return Err("a row has three figures".into()) };
        println!("{name:<23}{a:>10.1}{b:>10.1}{c:>10.1}");
    }
    let most = COUNTS[2];
    let scattered = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let backwards = |i| most as u64 - i;
    println!("\n{most} files, otherwise                write      read");
    for (name, sessions, token) in [
        ("tokens in no order", 1, &scattered as &dyn Fn(u64) -> u64),
        ("tokens descend", 1, &backwards),
        ("10,000 sessions of 10 files", 10_000, &|i| i),
    ] {
        let blob = luo_write(most, sessions, token)?;
        let write = best(most, || luo_write(most, sessions, token))?;
        let read = best(most, || luo_read(&blob))?;
        println!("{name:<32}{write:>10.1}{read:>10.1}");
    }
    Ok(())
}

/// The best run's nanoseconds a file, of runs that take about a second together.
fn best<T>(files: usize, mut run: impl FnMut() -> Result<T>) -> Result<f64> {
    let begin = Instant::now();
    let mut best = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || begin.elapsed() < Duration::from_secs(1) {
        let start = Instant::now();
        let result = black_box(run()?);
        best = best.min(start.elapsed());
        drop(result);
        runs += 1;
    }
    Ok(best.as_secs_f64() * 1e9 / files as f64)
}

fn on_blobs(run: impl Fn(&[u8]) -> Result<()>) -> Result<Vec<f64>> {
    COUNTS
        .into_iter()
        .map(|n| {
            let blob = luo_write(n, 1, |i| i)?;
            best(n, || run(black_box(&blob)))
        })
        .collect()
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
        writer.session(&session(&format!("session-{number}")))?;
        for _ in 0..files / sessions {
            writer.file(&File {
                token: token(next),
                compatible: "memfd-v1",
                data: next,
                criticality: Criticality::Required,
            })?;
            next += 1;
        }
    }
    Ok(writer.finish()?)
}

/// Visits every file with everything that is known of it.
fn luo_read(blob: &[u8]) -> Result<()> {
    let mut sum = 0_u64;
    for session in FilesTree::read(blob)?.sessions() {
        for file in session?.files() {
            let file = file?;
            sum = sum.wrapping_add(file.token ^ file.data ^ file.compatible.len() as u64);
        }
    }
    black_box(sum);
    Ok(())
}

/// Copies as many bytes a file as the tree has, with the two numbers set.
fn bare_write(files: usize) -> Result<Vec<u8>> {
    let template = [7_u8; 60];
    let mut out = Vec::with_capacity(64 * files);
    for i in 0..files as u64 {
        let mut node = black_box(template);
        node[4..12].copy_from_slice(&i.to_be_bytes());
        node[48..56].copy_from_slice(&i.to_be_bytes());
        out.extend_from_slice(&node);
    }
    Ok(out)
}

/// Looks at every word once, each step needing the one before, as in a pass over tokens.
fn bare_read(blob: &[u8]) -> Result<()> {
    let mut sum = 0_u32;
    for word in blob.chunks_exact(4) {
        let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
        sum = black_box(sum.wrapping_add(word));
    }
    black_box(sum);
    Ok(())
}

fn dtoolkit_write(files: usize) -> Result<Vec<u8>> {
    let mut session = DeviceTreeNode::new("session-0")?;
    session.add_property(DeviceTreeProperty::new("owner", 0x3e8_0000_03e8_u64)?);
    for i in 0..files {
        let mut file = DeviceTreeNode::new(format!("0x{i:x}"))?;
        file.add_property(DeviceTreeProperty::new("compatible", "memfd-v1")?);
        file.add_property(DeviceTreeProperty::new("data", i as u64)?);
        session.add_child(file);
    }
    let mut tree = DeviceTree::new();
    tree.root.add_property(DeviceTreeProperty::new("compatible", "file-descriptors-v1")?);
    tree.root.add_child(session);
    Ok(tree.to_dtb())
}

fn dtoolkit_read(blob: &[u8]) -> Result<()> {
    let tree = Fdt::new(blob)?;
    let mut sum = 0_u64;
    for session in tree.root().children() {
        for file in session.children() {
            sum = sum.wrapping_add(u64::from_str_radix(&file.name()[2..], 16)?);
            for property in file.properties() {
                match property.name() {
                    "data" => sum ^= property.value_as::<u64>()?,
                    "compatible" => sum ^= property.value_as::<&str>()?.len() as u64,
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
    program: std::path::PathBuf,
}

impl Libfdt {
    fn build() -> Result<Self> {
        let program = std::env::temp_dir().join(format!("luo-libfdt-bench-{}", std::process::id()));
        let source = program.with_extension("c");
        std::fs::write(&source, include_str!("libfdt_bench.c"))?;
        let status = Command::new("cc")
            .args(["-O2", "-o"])
            .arg(&program)
            .arg(&source)
            .arg("-lfdt")
            .status()
            .map_err(|error| format!("no C compiler: {error}"));
        std::fs::remove_file(&source)?;
        let libfdt = Self { program };
        if status?.success() { Ok(libfdt) } else { Err("it is not installed".into()) }
    }

    fn measure(&self, files: usize, what: &str) -> Result<f64> {
        let output = Command::new(&self.program).args([what, &files.to_string()]).output()?;
        if !output.status.success() {
            return Err(format!("libfdt: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    }
}

impl Drop for Libfdt {
    fn drop(&mut self) {
        // It may not have been built.
        let _ = std::fs::remove_file(&self.program);
    }
}
