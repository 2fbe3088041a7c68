//! Any bytes as a record: no panic, and whatever is taken for valid is encoded to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use luo_abi::record::{MemfdRecord, Record, version_of};

fuzz_target!(|bytes: &[u8]| {
    let again = match Record::decode(bytes) {
        Ok(Record::File(record)) => Some(record.encode()),
        Ok(Record::Timeline(record)) => Some(record.encode()),
        Ok(Record::Machine(record)) => Some(record.encode()),
        Ok(Record::Session(record)) => Some(record.encode()),
        Ok(_) | Err(_) => None,
    };
    if let Some(again) = again {
        assert!(version_of(bytes).is_ok());
        assert_eq!(again.as_deref(), Ok(bytes));
    }
    if let Ok(record) = MemfdRecord::decode(bytes) {
        assert_eq!(record.encode().as_deref(), Ok(bytes));
    }
});
