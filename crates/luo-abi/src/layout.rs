//! How the fixed layouts are written down: as structs that a test compares with `docs/abi.md`.
//!
//! Invariants: every struct is free of padding and of alignment, so that its layout is the order
//! of its fields.

macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(
                Debug,
                Clone,
                Copy,
                zerocopy::FromBytes,
                zerocopy::IntoBytes,
                zerocopy::KnownLayout,
                zerocopy::Immutable,
                zerocopy::Unaligned,
            )]
            #[repr(C)]
            pub(super) struct $name { $(pub(super) $field: $type,)* }

            #[cfg(test)]
            impl $name {
                /// Each field's offset, size and name.
                pub(super) fn fields() -> alloc::vec::Vec<(usize, usize, &'static str)> {
                    alloc::vec![$((
                        core::mem::offset_of!($name, $field),
                        size_of::<$type>(),
                        stringify!($field),
                    ),)*]
                }
            }
        )*
    };
}
