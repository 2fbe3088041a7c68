//! The framework's error: a [`Failure`] or a refusal, with where in the cycle it happened.
//!
//! Invariants: cheap to clone, because a failure is remembered and given again; its sentence can
//! be shown to a person as it stands and says what to do next where something can be done.

use alloc::{string::String, sync::Arc};
use core::fmt;

use crate::{Compatible, Errno, Failure, Phase, SessionId, SessionName, SubsystemName, Token};

/// Where something happened; what does not apply is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// The subsystem.
    pub subsystem: Option<SubsystemName>,
    /// The session.
    pub session: Option<(SessionId, SessionName)>,
    /// The file, within the session.
    pub token: Option<Token>,
    /// The handler.
    pub handler: Option<Compatible>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        let mut part = |f: &mut fmt::Formatter<'_>, what: fmt::Arguments<'_>| {
            let out = write!(f, "{between}{what}");
            between = ", ";
            out
        };
        if let Some(token) = self.token {
            part(f, format_args!("token {token}"))?;
        }
        if let Some((_, name)) = &self.session {
            part(f, format_args!("session {name}"))?;
        }
        if let Some(handler) = &self.handler {
            part(f, format_args!("handler {handler}"))?;
        }
        if let Some(subsystem) = &self.subsystem {
            part(f, format_args!("subsystem {subsystem}"))?;
        }
        Ok(())
    }
}

impl Location {
    /// Nothing is known of where.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug)]
struct Inner {
    errno: Errno,
    phase: Option<Phase>,
    location: Location,
    reason: String,
    advice: Option<String>,
    source: Option<Arc<Failure>>,
}

/// Why the framework refused or a transition failed. Cloning it is cheap.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

impl Error {
    /// A refusal with a reason that a person understands.
    pub fn new(errno: Errno, reason: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            errno,
            phase: None,
            location: Location::default(),
            reason: reason.into(),
            advice: None,
            source: None,
        }))
    }

    /// What a handler, carrier or subsystem answered, in which phase and where. The failure is
    /// kept as the source.
    #[must_use]
    pub fn from_failure(failure: Failure, phase: Phase, location: Location) -> Self {
        Self(Arc::new(Inner {
            errno: failure.errno(),
            phase: Some(phase),
            location,
            reason: failure.reason().into(),
            advice: None,
            source: Some(Arc::new(failure)),
        }))
    }

    /// What a check of untrusted input answered.
    pub(crate) fn refused(failure: Failure) -> Self {
        Self(Arc::new(Inner {
            errno: failure.errno(),
            phase: None,
            location: Location::default(),
            reason: failure.reason().into(),
            advice: None,
            source: Some(Arc::new(failure)),
        }))
    }

    /// The same failure, as it hit another place.
    pub(crate) fn hitting(&self, location: Location) -> Self {
        Self(Arc::new(Inner {
            errno: self.0.errno,
            phase: self.0.phase,
            location,
            reason: self.0.reason.clone(),
            advice: self.0.advice.clone(),
            source: self.0.source.clone(),
        }))
    }

    fn change(self, change: impl FnOnce(&mut Inner)) -> Self {
        // Only ever called while the error is being made, when nobody else has it yet.
        let mut inner = self.0;
        if let Some(inner) = Arc::get_mut(&mut inner) {
            change(inner);
        }
        Self(inner)
    }

    pub(crate) fn advise(self, advice: impl Into<String>) -> Self {
        self.change(|inner| inner.advice = Some(advice.into()))
    }

    pub(crate) fn at(self, location: Location) -> Self {
        self.change(|inner| inner.location = location)
    }

    pub(crate) fn in_phase(self, phase: Phase) -> Self {
        self.change(|inner| inner.phase = Some(phase))
    }

    /// The kernel ABI's number for it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.0.errno
    }

    /// The phase of the call that failed; `None` for a refusal that no call was made for.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }

    /// Where it happened.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.0.location
    }

    /// The reason alone, without errno, place and advice.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What can be done next, where something can.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }

    /// The failure that caused it, where a call was made.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.0.source.as_deref()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.phase, self.0.location.is_empty()) {
            (Some(phase), true) => write!(f, "{phase}: ")?,
            (Some(phase), false) => write!(f, "{phase} of {}: ", self.0.location)?,
            (None, false) => write!(f, "{}: ", self.0.location)?,
            (None, true) => {}
        }
        write!(f, "{} ({})", self.0.reason, self.0.errno)?;
        match &self.0.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        // The sentence of the failure itself is already part of this error's sentence.
        self.0.source.as_ref().and_then(|failure| failure.source())
    }
}
