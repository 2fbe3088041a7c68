//! luod's configuration: one TOML file, every value with a default, so that no file is needed.
//!
//! Invariants: a value is checked once, here; a key that is not known is an error, because it is a
//! misspelled one. Durations are in milliseconds, sizes in bytes, and say so in their names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::runtime_dir::SOCKET_NAME;

/// Where the configuration is unless it is named; it need not exist.
pub const DEFAULT_PATH: &str = "/etc/luod.toml";

/// What keeps descriptors when the worker is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeeperKind {
    /// luod's own parent process.
    #[default]
    Builtin,
    /// systemd's file descriptor store.
    Systemd,
}

impl KeeperKind {
    /// The word for it in the file and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Systemd => "systemd",
        }
    }
}

/// The longest path of a Unix socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of the socket. Default `$RUNTIME_DIRECTORY`, `/run/luod` for root,
    /// `$XDG_RUNTIME_DIR/luod` for others.
    pub runtime_directory: Option<PathBuf>,
    /// What keeps descriptors when the worker is gone.
    pub keeper: KeeperKind,
    /// The arena that an update of the machine can go through. Default none.
    pub arena: Option<PathBuf>,
    /// What of the arena is verified when it is given back.
    pub arena_verify: ArenaVerify,
    /// Whether an update of the machine can go through the kernel's `/dev/liveupdate`.
    pub liveupdate: LiveUpdate,
    /// Permissions of the socket, octal in a string: who may talk to luod at all.
    pub socket_mode: SocketMode,
    /// What one user may have.
    pub limits: Limits,
    /// What one client may do.
    pub clients: Clients,
    /// How long participants may take.
    pub participants: Participants,
    /// How often and how fast the keeper starts a worker again.
    pub worker: Worker,
}

/// What of an arena is verified when it is given back. Metadata and records always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArenaVerify {
    /// Memory too: damage to it is the error of that file. The default.
    #[default]
    Memory,
    /// Nothing else: damaged memory is given back as it is.
    Metadata,
}

/// Whether luod uses `/dev/liveupdate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LiveUpdate {
    /// Where the device is there and can be opened. The default.
    #[default]
    Auto,
    /// It should be there: that it cannot be opened is reported.
    On,
    /// Never: the device is left to others.
    Off,
}

/// Permissions of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SocketMode(pub u32);

impl Default for SocketMode {
    fn default() -> Self {
        Self(0o666)
    }
}

impl TryFrom<String> for SocketMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(format!("{text:?} is no file mode; write it as in \"0660\"")),
        }
    }
}

/// What one user may have. Root is exempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Sessions. Default 1,000.
    pub sessions: u64,
    /// Files in all of them. Default 100,000.
    pub files: u64,
    /// Bytes of memory that these files keep in use. Default 1 TiB.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: 1_000, files: 100_000, bytes: 1 << 40 }
    }
}

/// What one client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clients {
    /// Open connections of one user, those to its sessions included. Default 1,024.
    pub connections_per_user: usize,
    /// Bytes of one message. Default 1 MiB.
    pub message_bytes: usize,
    /// How long a client may leave a message half sent, or replies unread. Default 30,000.
    pub patience_milliseconds: u64,
}

impl Default for Clients {
    fn default() -> Self {
        Self { connections_per_user: 1_024, message_bytes: 1 << 20, patience_milliseconds: 30_000 }
    }
}

impl Clients {
    /// How long a client may leave a message half sent, or replies unread.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_milliseconds)
    }
}

/// How long participants may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Participants {
    /// For one call, unless the participant asks for less. Default 30,000.
    pub deadline_milliseconds: u64,
    /// How long after a worker began participants of the worker before may come back, before they
    /// count as gone. Default 120,000.
    pub return_milliseconds: u64,
}

impl Default for Participants {
    fn default() -> Self {
        Self { deadline_milliseconds: 30_000, return_milliseconds: 120_000 }
    }
}

/// How often and how fast the keeper starts a worker again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// How long a worker may take until it serves. Default 30,000.
    pub start_milliseconds: u64,
    /// A worker that dies sooner than this after it began to serve died at once. Default 1,000.
    pub quick_death_milliseconds: u64,
    /// After so many deaths at once the keeper gives up and holds what it has. Default 5.
    pub quick_deaths: u32,
    /// Descriptors that the keeper holds at most. Default: as the system allows.
    pub descriptors: Option<u64>,
    /// Bytes of records that the keeper holds at most. Default 1 GiB.
    pub record_bytes: u64,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            start_milliseconds: 30_000,
            quick_death_milliseconds: 1_000,
            quick_deaths: 5,
            descriptors: None,
            record_bytes: 1 << 30,
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that is not understood.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value is out of its range.
    #[error("{}: {key} must be {range}", path.display())]
    Range {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is allowed.
        range: &'static str,
    },
    /// No directory for the socket is known.
    #[error(
        "no directory for the socket: set runtime_directory in the configuration, \
         --runtime-dir, or XDG_RUNTIME_DIR"
    )]
    NoRuntimeDirectory,
    /// The socket's path would be longer than the system allows.
    #[error(
        "{} has {} bytes, and the path of a socket at most {SOCKET_PATH_MAX}; name a shorter \
         directory, in the configuration or with --runtime-dir",
        .0.display(),
        .0.as_os_str().len()
    )]
    SocketPath(PathBuf),
}

impl Config {
    /// Reads the file that is named, or the default one if it is there.
    ///
    /// # Errors
    /// If a named file is not there, or what it says is not right.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let named = path.is_some();
        let path = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let range = |ok: bool, key, range| {
            if ok { Ok(()) } else { Err(ConfigError::Range { path: path.to_owned(), key, range }) }
        };
        range(self.clients.connections_per_user > 0, "clients.connections_per_user", "at least 1")?;
        range(
            (4_096..=64 << 20).contains(&self.clients.message_bytes),
            "clients.message_bytes",
            "between 4096 and 67108864",
        )?;
        range(
            self.clients.patience_milliseconds > 0,
            "clients.patience_milliseconds",
            "at least 1",
        )?;
        range(
            self.participants.deadline_milliseconds > 0,
            "participants.deadline_milliseconds",
            "at least 1",
        )?;
        range(self.worker.start_milliseconds > 0, "worker.start_milliseconds", "at least 1")?;
        range(self.worker.quick_deaths > 0, "worker.quick_deaths", "at least 1")?;
        range(self.worker.descriptors != Some(0), "worker.descriptors", "at least 1")?;
        range(self.worker.record_bytes > 0, "worker.record_bytes", "at least 1")
    }

    /// The directory of the socket.
    ///
    /// # Errors
    /// [`ConfigError::NoRuntimeDirectory`], [`ConfigError::SocketPath`].
    pub fn runtime_directory(&self) -> Result<PathBuf, ConfigError> {
        let directory = self.find_runtime_directory()?;
        let socket = directory.join(SOCKET_NAME);
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(ConfigError::SocketPath(socket));
        }
        Ok(directory)
    }

    fn find_runtime_directory(&self) -> Result<PathBuf, ConfigError> {
        if let Some(directory) = &self.runtime_directory {
            return Ok(directory.clone());
        }
        if let Some(directory) = std::env::var_os("RUNTIME_DIRECTORY") {
            return Ok(PathBuf::from(directory));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/run/luod"));
        }
        match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(directory) => Ok(PathBuf::from(directory).join("luod")),
            None => Err(ConfigError::NoRuntimeDirectory),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("luod.toml"), text)
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_sample_says_what_the_defaults_are() {
        let sample = include_str!("../../../packaging/luod.toml");
        let uncommented: String = sample
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n");
        assert_eq!(parse(&uncommented).unwrap(), Config::default());
    }

    #[test]
    fn a_misspelled_key_is_an_error_that_names_it() {
        let error = parse("[limits]\nsesions = 3").unwrap_err().to_string();
        assert!(error.contains("sesions"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_is_an_error_that_names_its_key() {
        let error = parse("[clients]\nmessage_bytes = 1").unwrap_err().to_string();
        assert!(error.contains("clients.message_bytes"), "{error}");
        assert!(error.contains("luod.toml"), "{error}");
        for (section, key) in [("worker", "descriptors"), ("worker", "record_bytes")] {
            let error = parse(&format!("[{section}]\n{key} = 0")).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(parse("socket_mode = \"0999\"").is_err());
        assert_eq!(parse("socket_mode = \"0600\"").unwrap().socket_mode, SocketMode(0o600));
    }

    #[test]
    fn a_named_file_must_be_there() {
        assert!(matches!(
            Config::load(Some(Path::new("/nonexistent/luod.toml"))),
            Err(ConfigError::Read { .. })
        ));
    }
}
