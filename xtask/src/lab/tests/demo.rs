//! The demonstration that replaces a kernel under kv.

use crate::demo::kexec;
use crate::failure::Result;
use crate::lab::Lab;
use crate::lab::medium::Medium;

pub(super) fn liveupdate(lab: &Lab) -> Result<String> {
    kexec::check(lab, Medium::Liveupdate)
}

pub(super) fn arena(lab: &Lab) -> Result<String> {
    kexec::check(lab, Medium::Pmem)
}
