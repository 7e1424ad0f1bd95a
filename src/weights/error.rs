//! What can be wrong with files of weights: what, where, and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::DType;

/// An error of reading or writing weights, always with the file's path.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}{}", path.display(), Hint(io_hint(source)))]
    Io {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A read beyond the end of a file, or of a file that shrank while open.
    #[error(
        "{}: bytes {offset}..{} are needed but the file has {size} (truncated, or changed while \
         in use; fetch it again)", path.display(), offset.saturating_add(*len)
    )]
    OutOfBounds {
        /// The file.
        path: PathBuf,
        /// First byte wanted.
        offset: u64,
        /// Bytes wanted.
        len: u64,
        /// Bytes that there are.
        size: u64,
    },
    /// A container that breaks its format's rules.
    #[error("{}: {}{defect}{}", path.display(), InTensor(tensor), Hint(defect.hint()))]
    Format {
        /// The file at fault.
        path: PathBuf,
        /// The tensor at fault, if it is one.
        tensor: Option<String>,
        /// What is wrong.
        defect: Box<Defect>,
    },
    /// A tensor that can't be seen as a matrix of numbers, or rows outside it.
    #[error("{}: {problem}", path.display())]
    View {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// What was asked and why it can't be.
        problem: String,
    },
    /// The shard writer was used against its protocol, or a journal disagrees.
    #[error("{}: {}{problem}", path.display(), InTensor(tensor))]
    Writer {
        /// The shard or directory.
        path: PathBuf,
        /// The tensor being written, if any.
        tensor: Option<String>,
        /// What is wrong.
        problem: String,
    },
}

impl WeightsError {
    /// Wraps a system error; `action` is a verb phrase such as "open".
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> WeightsError {
        WeightsError::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn format(path: &Path, tensor: Option<&str>, defect: Defect) -> WeightsError {
        WeightsError::Format {
            path: path.to_path_buf(),
            tensor: tensor.map(str::to_owned),
            defect: Box::new(defect),
        }
    }

    /// The file at fault.
    pub fn path(&self) -> &Path {
        match self {
            WeightsError::Io { path, .. }
            | WeightsError::OutOfBounds { path, .. }
            | WeightsError::Format { path, .. }
            | WeightsError::View { path, .. }
            | WeightsError::Writer { path, .. } => path,
        }
    }

    /// True where the fault is in the input's bytes, not in the system.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            WeightsError::OutOfBounds { .. } | WeightsError::Format { .. }
        )
    }
}

/// What is wrong with a safetensors file or a shard index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// The file ends before its eight-byte header length.
    #[error("the file has {size} bytes, too few for a safetensors header")]
    NoHeader {
        /// Bytes that there are.
        size: u64,
    },
    /// The first bytes are those of another format.
    #[error("this is {what}, not safetensors")]
    OtherFormat {
        /// What the file looks like.
        what: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// A header longer than the format allows.
    #[error("the header claims {claimed} bytes; the format allows {limit}")]
    HeaderTooLong {
        /// Length in the first eight bytes.
        claimed: u64,
        /// The format's limit.
        limit: u64,
    },
    /// A header that is longer than the file.
    #[error("the header claims {claimed} bytes but only {available} follow")]
    HeaderTruncated {
        /// Length in the first eight bytes.
        claimed: u64,
        /// Bytes after them.
        available: u64,
    },
    /// A header that is no UTF-8.
    #[error("the header is no UTF-8 from byte {at} on")]
    NotUtf8 {
        /// Offset within the header.
        at: usize,
    },
    /// JSON that doesn't parse or isn't of the expected form.
    #[error("the JSON is malformed: {message}")]
    Json {
        /// The parser's words, with line and column.
        message: String,
    },
    /// The same name twice.
    #[error("the name occurs twice")]
    DuplicateName,
    /// A dtype that isn't known.
    #[error("unknown dtype `{0}`")]
    UnknownDType(String),
    /// A shape whose size doesn't fit in 64 bits.
    #[error("shape {0:?} has more than 2^64 bytes")]
    ShapeOverflow(Vec<u64>),
    /// A sub-byte tensor that ends inside a byte.
    #[error("{elements} elements of {dtype} don't fill whole bytes")]
    PartialByte {
        /// The element type.
        dtype: DType,
        /// Elements in the tensor.
        elements: u64,
    },
    /// Offsets in the wrong order.
    #[error("data_offsets begin at {begin} after their end {end}")]
    ReversedOffsets {
        /// First byte, from the start of the data.
        begin: u64,
        /// Byte after the last.
        end: u64,
    },
    /// Data beyond the end of the file.
    #[error("data_offsets end at {end} but the file holds {available} bytes of data")]
    DataTruncated {
        /// Byte after the last, from the start of the data.
        end: u64,
        /// Bytes of data that there are.
        available: u64,
    },
    /// Offsets that don't match dtype and shape.
    #[error("{dtype} {shape:?} takes {expected} bytes but data_offsets span {actual}")]
    SizeMismatch {
        /// The element type.
        dtype: DType,
        /// The shape.
        shape: Vec<u64>,
        /// Bytes of dtype and shape.
        expected: u64,
        /// Bytes that the offsets span.
        actual: u64,
    },
    /// Two tensors share bytes.
    #[error("data bytes {begin}..{end} belong to tensor `{other}` too")]
    Overlap {
        /// The tensor before.
        other: String,
        /// First shared byte.
        begin: u64,
        /// Byte after the last shared one.
        end: u64,
    },
    /// Bytes that no tensor describes.
    #[error("data bytes {begin}..{end} belong to no tensor")]
    Hole {
        /// First byte without an owner.
        begin: u64,
        /// Byte after the last.
        end: u64,
    },
    /// A shard name that is no plain file name.
    #[error("shard name `{0}` is no plain file name")]
    UnsafeShardName(String),
    /// A shard that isn't there.
    #[error("shard `{0}` is missing")]
    MissingShard(String),
    /// A tensor that the index promises and the shard lacks.
    #[error("the index places it in `{0}`, which doesn't hold it")]
    NotInShard(String),
    /// A tensor that two shards hold.
    #[error("shards `{first}` and `{second}` both hold it")]
    InTwoShards {
        /// The earlier shard.
        first: String,
        /// The later one.
        second: String,
    },
    /// An index larger than the limit.
    #[error("the index has {size} bytes; at most {limit} are read")]
    IndexTooLong {
        /// Bytes of the file.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A directory without anything to read.
    #[error("the directory holds {found}")]
    NoCheckpoint {
        /// What was found instead.
        found: String,
    },
}

impl Defect {
    /// What the user can do, where there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Defect::OtherFormat { hint, .. } => hint,
            Defect::HeaderTooLong { .. } | Defect::NotUtf8 { .. } => {
                "is this really a safetensors file?"
            }
            Defect::NoHeader { .. }
            | Defect::HeaderTruncated { .. }
            | Defect::DataTruncated { .. } => "the download is probably incomplete; fetch it again",
            Defect::MissingShard(_) => "fetch the shard into the directory of the index",
            Defect::UnsafeShardName(_) => "an index may only name files beside itself",
            Defect::NotInShard(_) | Defect::InTwoShards { .. } => {
                "index and shards are not of one version; fetch them together"
            }
            Defect::Overlap { .. } | Defect::Hole { .. } | Defect::SizeMismatch { .. } => {
                "the file was written by a faulty tool; save it again with the safetensors library"
            }
            Defect::NoCheckpoint { .. } => {
                "expected model.safetensors.index.json, model.safetensors, or one .safetensors file"
            }
            _ => return None,
        })
    }
}

fn io_hint(source: &io::Error) -> Option<&'static str> {
    Some(match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space and continue with --resume"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "choose a place that you may use"
        }
        _ => return None,
    })
}

struct Hint(Option<&'static str>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

struct InTensor<'a>(&'a Option<String>);

impl fmt::Display for InTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // A hostile name may be megabytes of control characters.
            Some(name) => {
                let short: String = name.chars().take(120).collect();
                write!(f, "tensor {short:?}: ")
            }
            None => Ok(()),
        }
    }
}
