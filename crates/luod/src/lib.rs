//! The daemon of luo, the live update orchestrator.
//!
//! luod is two processes: the keeper, which holds, and the worker, which works. The keeper is
//! small and knows nothing of what it holds; the worker may die at any instruction, and is
//! replaced in the same way when luod is upgraded.
#![forbid(unsafe_code)]

pub mod config;
pub mod keeper;
mod notify;
pub mod runtime_dir;
pub mod store;
pub mod worker;

/// This luod's version. `LUOD_VERSION` names another one, so that an upgrade from a build to the
/// same build can be told apart.
#[must_use]
pub fn version() -> String {
    std::env::var("LUOD_VERSION").unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned())
}

/// Everything that this luod reads: versions of trees and records, and handlers. A luod that is to
/// be replaced can be compared with its successor by it.
#[must_use]
pub fn compatible() -> Vec<String> {
    let mut known = vec![
        luo_abi::handover::MACHINE_COMPATIBLE,
        luo_abi::handover::SUBSYSTEMS_COMPATIBLE,
        luo_abi::handover::FILES_COMPATIBLE,
    ];
    known.extend(luo_abi::record::Record::KNOWN);
    known.push(luo_core::DUPLICATE_COMPATIBLE);
    let handlers = luo_files::handlers();
    known.extend(handlers.iter().map(|handler| handler.compatible()));
    known.into_iter().map(str::to_owned).collect()
}
