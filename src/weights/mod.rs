//! Bytes of weights: mapped files, containers, streamed output, decoding.
//!
//! Nothing here knows the IR. Files are mapped read-only and pages are given
//! back tile by tile, so that memory follows the tiles in flight and never the
//! model. Every parser treats its input as hostile: it returns a located error
//! and allocates no more than a small multiple of the header.

pub mod dtype;
pub mod error;
pub mod hash;
pub mod index;
pub mod mapped;
pub mod read;
pub mod safetensors;
pub mod writer;

pub use dtype::DType;
pub use error::{Defect, WeightsError};
pub use hash::{Digest, HashQueue, sha256_file};
pub use index::{Checkpoint, Shard};
pub use mapped::{FileCache, MappedFile};
pub use read::{MatrixView, Source};
pub use safetensors::{Header, TensorInfo};
pub use writer::{Entry, Finished, Placed, Position, ShardInfo, ShardWriter, WriterOptions};

/// Result of everything in this module.
pub type Result<T, E = WeightsError> = std::result::Result<T, E>;
