//! What a writer is told, and what it tells: options, entries for the journal, final places.

use serde::{Deserialize, Serialize};

use crate::weights::DType;

/// How a [`ShardWriter`](super::ShardWriter) names, splits and prefixes its files.
///
/// A resumed run must use the options of the interrupted one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterOptions {
    /// First part of every file name.
    pub stem: String,
    /// Most bytes of data in a shard; one larger tensor gets its own shard.
    pub shard_size: u64,
    /// Bytes kept free for each header, rounded up to 8. A header that needs
    /// more costs one rewrite of its shard.
    pub header_reserve: u64,
    /// Entries of `__metadata__` in each shard.
    pub metadata: Vec<(String, String)>,
}

impl Default for WriterOptions {
    fn default() -> WriterOptions {
        WriterOptions {
            stem: "model".to_owned(),
            shard_size: 5_000_000_000,
            header_reserve: 64 * 1024,
            metadata: Vec::new(),
        }
    }
}

impl WriterOptions {
    /// Reserves room for the headers of about this many tensors per shard.
    ///
    /// `bytes_each` is the length of a name plus some 90 bytes for dtype, shape
    /// and offsets.
    pub fn reserve_for(mut self, tensors: u64, bytes_each: u64) -> WriterOptions {
        self.header_reserve = tensors.saturating_mul(bytes_each).saturating_add(256);
        self
    }
}

/// A tensor that has been written completely; what a journal records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name, unique in the output.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Number of the shard, from 0.
    pub shard: u32,
    /// First byte, from the start of the shard's data.
    pub offset: u64,
    /// Bytes of data.
    pub bytes: u64,
}

/// A point between two tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Number of the shard, from 0.
    pub shard: u32,
    /// Bytes of data in that shard.
    pub data_len: u64,
    /// Tensors written in all.
    pub entries: usize,
}

/// A finished file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// Name within the output directory.
    pub file: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
}

/// A tensor's final place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Name of the tensor.
    pub name: String,
    /// Index of its file in [`Finished::files`].
    pub file: usize,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes of data.
    pub bytes: u64,
}

/// What [`ShardWriter::finish`](super::ShardWriter::finish) leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The shards in order, and after them the index where there are several.
    pub files: Vec<ShardInfo>,
    /// All tensors in the order of writing.
    pub tensors: Vec<Placed>,
}
