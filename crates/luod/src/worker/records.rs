#![allow(missing_docs)]
use luo_abi::record::RecordError;
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)] pub(crate) struct SessionExtra { pub(crate) created_by: u64, pub(crate) finished_by: u64 }
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)] pub(crate) struct FileExtra { pub(crate) request: u64, pub(crate) index: u32 }
pub(crate) fn machine(_: &luo_core::MachineRecord) -> Result<Vec<u8>, RecordError>{unreachable!()}
pub(crate) fn session(_: &luo_core::SessionRecord, _: &SessionExtra) -> Result<Vec<u8>, RecordError>{unreachable!()}
pub(crate) fn file(_: &luo_core::FileRecord, _: &FileExtra) -> Result<Vec<u8>, RecordError>{unreachable!()}
pub(crate) fn read_machine(_: &[u8]) -> Result<luo_core::MachineRecord, RecordError>{unreachable!()}
pub(crate) fn read_session(_: &[u8]) -> Result<(luo_core::SessionRecord, SessionExtra), RecordError>{unreachable!()}
pub(crate) fn read_file(_: &[u8]) -> Result<(luo_core::FileRecord, FileExtra), RecordError>{unreachable!()}
