//! SIGBUS within a mapping marks that mapping as broken, and does nothing else.
//!
//! A page that is not there (the file was truncated, its file system is full, the device has failed)
//! raises SIGBUS in the thread that touches it. The handler then puts private memory of zeros in the
//! place of the *whole* mapping, since that can be done in units of any size, and returns: the access
//! goes on there, and the mapping's user finds it broken afterwards.
//!
//! Invariants:
//! - A mapping is marked as broken before anything else is in its place. So whoever finds it whole
//!   after an access had the real memory.
//! - The handler reads atomics and makes system calls; it takes no lock and allocates nothing.
//! - A SIGBUS that is of no guarded mapping goes where it would have gone.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A guarded range of addresses. Slots are used again and never freed, so that the handler may look
/// at them at any instant.
struct Slot {
    /// `usize::MAX` where it guards nothing.
    start: AtomicUsize,
    end: AtomicUsize,
    broken: AtomicBool,
    next: Option<&'static Slot>,
}

/// The slot that was made last.
static LAST: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
/// Those that guard nothing.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
/// What SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Guards a mapping for as long as it lives.
pub(super) struct Guard(&'static Slot);

impl Guard {
    pub(super) fn new(base: NonNull<u8>, len: usize) -> io::Result<Self> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        install()?;
        let slot = free.pop().unwrap_or_else(|| {
            let last = LAST.load(Ordering::Acquire);
            // SAFETY: it is null, or was leaked below.
            let next = unsafe { last.as_ref() };
            let slot: &'static mut Slot = Box::leak(Box::new(Slot {
                start: AtomicUsize::new(usize::MAX),
                end: AtomicUsize::new(0),
                broken: AtomicBool::new(false),
                next,
            }));
            // Whoever makes slots holds the lock.
            LAST.store(slot, Ordering::Release);
            slot
        });
        let start = base.addr().get();
        slot.broken.store(false, Ordering::SeqCst);
        slot.end.store(start + len, Ordering::SeqCst);
        slot.start.store(start, Ordering::SeqCst);
        Ok(Self(slot))
    }

    /// Whether an access has failed.
    pub(super) fn broken(&self) -> bool {
        self.0.broken.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.start.store(usize::MAX, Ordering::SeqCst);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

/// Makes the handler that of SIGBUS, once; whoever calls it holds the lock on the free slots.
fn install() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: sigaction is a plain C struct of integers and pointers for which all zeroes are valid.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is given; `before` is a place for the present one.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut action = before;
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // The handler finds it there from its first call on.
    BEFORE.get_or_init(|| before);
    // SAFETY: `action` is initialised and lives through the call; the handler has the signature that
    // goes with SA_SIGINFO and does only async-signal-safe things.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid one, for as long as it runs.
    let what = unsafe { &*info };
    let code = what.si_code;
    // Codes above zero are the kernel's own: then there is an address.
    if code > 0 {
        // SAFETY: SIGBUS from the kernel fills in the address.
        let address = unsafe { what.si_addr() }.addr();
        if mend(address) {
            return;
        }
    }
    pass_on(signal, code, info, context);
}

/// Puts memory in the place of the guarded mapping that holds the address, if there is one.
fn mend(address: usize) -> bool {
    // SAFETY: it is null, or was leaked.
    let mut next = unsafe { LAST.load(Ordering::Acquire).as_ref() };
    while let Some(slot) = next {
        next = slot.next;
        let start = slot.start.load(Ordering::SeqCst);
        let end = slot.end.load(Ordering::SeqCst);
        // Read again: another thread may be giving the slot to another mapping just now.
        if start > address || end <= address || slot.start.load(Ordering::SeqCst) != start {
            continue;
        }
        slot.broken.store(true, Ordering::SeqCst);
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let at = std::ptr::without_provenance_mut(start);
        // SAFETY: __errno_location has no precondition and is async-signal-safe.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: it points to this thread's errno, which lives as long as the thread.
        let saved = unsafe { *errno };
        // SAFETY: a thread is accessing this range, so its `Mapped` is borrowed and owns all of the
        // range: nothing else is replaced, and nothing in it is borrowed. `mmap` is a bare system
        // call, and async-signal-safe on Linux.
        let mapped = unsafe { libc::mmap(at, end - start, prot, flags, -1, 0) };
        // SAFETY: as above; the code that was interrupted finds its errno again.
        unsafe { *errno = saved };
        return mapped != libc::MAP_FAILED;
    }
    false
}

/// Does what would have been done without this module.
fn pass_on(
    signal: libc::c_int,
    code: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        // From another process; one of the kernel's own cannot be ignored.
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: as in `install`; all zeroes are SIG_DFL without flags.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: `default` is initialised and lives through the call.
            unsafe { libc::sigaction(signal, &default, std::ptr::null_mut()) };
            // SAFETY: async-signal-safe; it takes effect when the handler returns.
            unsafe { libc::raise(signal) };
        }
        other if before.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: it was installed with SA_SIGINFO, so it is the address of such a function.
            let before = unsafe { std::mem::transmute::<libc::sighandler_t, Handler>(other) };
            before(signal, info, context);
        }
        other => {
            type Handler = extern "C" fn(libc::c_int);
            // SAFETY: it was installed without SA_SIGINFO, and is neither SIG_DFL nor SIG_IGN: it is
            // the address of such a function.
            let before = unsafe { std::mem::transmute::<libc::sighandler_t, Handler>(other) };
            before(signal);
        }
    }
}
