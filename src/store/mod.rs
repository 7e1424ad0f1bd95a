//! The store: weights of a module as bytes, in and out.
//!
//! [`Reader`] finds the bytes that a [`crate::ir::Weight`] refers to, and decodes matrices and terms;
//! [`Sink`] takes what passes make and streams it into shards, with a journal to resume from.

mod constants;
mod copied;
mod journal;
mod reader;
mod rebase;
mod rotated;
mod scratch;
mod sink;
mod synthetic;

pub use constants::shapes;
pub use copied::copied_as;
pub use journal::{Journal, JournalError, Record};
pub use reader::{Located, Reader, StoreError, file_path};
pub use rebase::rebase;
pub use rotated::{Coordinates, turned_moments};
pub use scratch::{in_scratch, is_fleeting, is_scratch};
pub use sink::{Done, JOURNAL, NewTensor, Sink, SinkError, TensorOutline};
