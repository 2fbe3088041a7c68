//! The system calls that luo needs and rustix lacks; the only crate of luo with `unsafe`.
//!
//! Invariants: every function here is safe to call with any argument; each `unsafe` block proves
//! why. A descriptor is owned by exactly one [`OwnedFd`](std::os::fd::OwnedFd) and close-on-exec.

mod description;
mod epoll;
mod events;
mod inherit;
mod kexec;
mod liveupdate;
mod mapped;
mod mapping;
mod mqueue;
mod number;
mod range;
mod sealed;
mod signals;
mod sockopt;
pub mod tcp;
mod tun;
mod unix;
mod user;
mod watches;

pub use description::{order_descriptions, same_description};
pub use epoll::{
    BusyPoll, EpollMember, FillError, busy_poll, fill_epoll, order_epoll_member, set_busy_poll,
};
pub use events::{set_timer_ticks, signalfd};
pub use inherit::{adopt, adopt_stdin, close_on_exec, settle};
pub use kexec::{
    crash_kernel_loaded, kernel_loaded, load_kernel, restart_into_loaded, unload_kernel,
};
pub use liveupdate::{LIVEUPDATE_DEVICE, LiveUpdateDevice, LiveUpdateSession};
pub use mapped::{Durability, Mapped, Protection};
pub use mapping::{Memory, MemoryError};
pub use mqueue::{
    QueueAttributes, QueueMessage, make_queue, open_queue, put_message, queue_attributes,
    remove_queue, take_message,
};
pub use number::{
    bound_device, buffer_locks, set_bound_device, set_buffer_locks, set_socket_mark,
    set_socket_priority, set_transparent, socket_mark, socket_priority,
};
pub use range::{FileRange, lend_range, lent_range, lent_within, lock_range};
pub use sealed::{read_sealed, seal, sealed_size};
pub use signals::{Signals, blocked};
pub use sockopt::{SOCKET_OPTIONS, SocketOption, TcpState, has_filter, tcp_state};
pub use tun::{Tun, TunNumber, TunSetting, interface_features};
pub use unix::{
    UnixSocket, as_effective, bytes_before_last_piece, peek_offset, set_peek_offset, unix_socket,
    unread_weight,
};
pub use user::as_user;
pub use watches::{open_by_handle, set_next_watch};
