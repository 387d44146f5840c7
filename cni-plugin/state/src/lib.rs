//! State on disk that any process may be killed in the middle of.
//!
//! Three ideas carry everything here: locks die with the process that holds them ([`Lock`]), a file
//! is either whole or not there ([`write_whole`]), and state of containers lives in a directory
//! named after the boot ([`boot_dir`]), so that nothing can outlast the containers it describes.
//! That needs no `fsync`: after a power cut the boot id differs, and the state is thrown away anyway. What a host leased
//! survives it, and is written durably ([`lease`]).

mod boot;
mod clock;
mod dirs;
mod files;
pub mod lease;
mod limit;
mod lock;

pub use boot::{BOOT_ID_ENV, boot_dir, boot_id, boot_path};
pub use clock::{STARTED_ENV, boot_began, monotonic, started, worked};
pub use dirs::{can_be_made, data_dir, state_dir};
pub use files::{hash, open_to_write, read_at_once, short_hash, write_durable, write_public, write_whole};
pub use limit::ManyFiles;
pub use lock::{Lock, holder};
